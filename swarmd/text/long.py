"""Token ids of documents of any length in bounded memory, the same as of the whole document at once.

A document is cut only between two words of the tokenizer's own pre-tokenizer (what its model sees at once), where the
ids of what comes after the cut are the same with and without what comes before. Words found from one cut on go on as
they would have without it; what a word looks like depends on text behind it no farther than `Lengths.tail`. Knows no
files.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any


@dataclass(frozen=True)
class Lengths:
    """Lengths, in characters and words, by which a document is cut."""

    block: int = 1 << 16  # encoded at once: the library takes some 150 bytes for each
    tail: int = 1 << 12  # behind a cut that are compared
    limit: int = 1 << 20  # among which there must be a place to cut
    words: int = 16  # behind a cut, at least
    tries: int = 64  # places that are compared before more text is taken


LENGTHS = Lengths()

Encode = Callable[[str], Any]
"""To an encoding of the library, without special tokens: `ids`, `offsets` and `word_ids`."""


class NoPlaceToCut(Exception):
    """A document has no place to be cut among so many characters."""


def encode_long(encode: Encode, pieces: Iterator[str], lengths: Lengths = LENGTHS) -> Iterator[list[int]]:
    """The ids of a document that comes in pieces. Raises NoPlaceToCut."""
    held, wanted = "", lengths.block
    for piece in in_steps(pieces, max(1, lengths.block // 4)):
        held += piece
        if len(held) < wanted + lengths.tail:
            continue
        found = _cut(encode, held, lengths)
        if found is not None:
            ids, place = found
            yield ids
            held, wanted = held[place:], lengths.block
        elif wanted >= lengths.limit:
            raise NoPlaceToCut
        else:
            wanted = min(2 * wanted, lengths.limit)
    if held:
        yield encode(held).ids


def in_steps(pieces: Iterable[str], most: int) -> Iterator[str]:
    """The same text in pieces of so many characters at most."""
    for piece in pieces:
        for start in range(0, len(piece), most):
            yield piece[start : start + most]


def _cut(encode: Encode, text: str, lengths: Lengths) -> tuple[list[int], int] | None:
    """The ids before the last good place to cut, and that place; None if there is none."""
    whole = encode(text)
    ids, words = whole.ids, whole.word_ids
    for index, place in _places(words, whole.offsets, len(text), lengths):
        after = encode(text[place:])
        if after.ids == ids[index:] and _shape(after.word_ids) == _shape(words[index:]):
            return ids[:index], place
    return None


def _places(
    words: list[int], offsets: list[tuple[int, int]], length: int, lengths: Lengths
) -> Iterator[tuple[int, int]]:
    """Places between words with enough behind them, the last ones first: the number of the token that begins there, and
    its place in the text.
    """
    tries = 0
    for index in range(len(words) - 1, 0, -1):
        place = offsets[index][0]
        if words[index] == words[index - 1] or not 0 < offsets[index - 1][1] <= place <= length - lengths.tail:
            continue
        if words[-1] - words[index] >= lengths.words:
            yield index, place
            tries += 1
        if tries == lengths.tries:
            return


def _shape(words: list[int]) -> list[bool]:
    """Between which tokens a word ends."""
    return [one != other for one, other in pairwise(words)]
