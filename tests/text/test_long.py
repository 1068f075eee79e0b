"""A document gives the tokens that it gives as a whole, wherever it is cut and in whatever pieces it comes."""

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmd.text.long import Lengths, NoPlaceToCut, encode_long
from tests.text.tokenizers_made import KINDS, PROSE, library, made

SHORT = Lengths(block=120, tail=60, limit=1 << 16, words=6, tries=64)
WORDS = [
    *"aé .,\n\t'0",
    "the",
    " quick",
    "Straße",
    "don't",
    "  ",
    "\n\n",
    "1234",
    "e\u0301",
    "字",
    "🦊",
    "\u3000",
    "fox ",
]
TEXTS = st.lists(st.sampled_from(WORDS), max_size=600).map("".join)


def pieces(text: str, size: int) -> Iterator[str]:
    return (text[start : start + size] for start in range(0, len(text), size))


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=40)
@given(text=TEXTS, size=st.integers(1, 500))
def test_tokens_are_those_of_the_whole_document(kind: str, text: str, size: int) -> None:
    tokenizer = made(kind)

    def encode(part: str) -> object:
        return tokenizer.encode(part, add_special_tokens=False)

    found = [number for ids in encode_long(encode, pieces(text, size), SHORT) for number in ids]
    assert found == tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_cut_and_memory_is_bounded(kind: str) -> None:
    tokenizer, longest = made(kind), 0

    def encode(part: str) -> object:
        nonlocal longest
        longest = max(longest, len(part))
        return tokenizer.encode(part, add_special_tokens=False)

    blocks = list(encode_long(encode, pieces(PROSE, 1000), SHORT))
    assert len(blocks) > len(PROSE) / SHORT.block / 2
    assert longest < 2 * (SHORT.block + SHORT.tail)
    assert [number for ids in blocks for number in ids] == tokenizer.encode(PROSE, add_special_tokens=False).ids


def test_a_text_without_words_is_taken_whole_up_to_a_limit() -> None:
    tokenizer = made("gpt2")
    lengths = Lengths(block=100, tail=50, limit=400, words=4, tries=8)
    word = "é" * 449
    (ids,) = encode_long(tokenizer.encode, iter([word]), lengths)
    assert tokenizer.decode(ids) == word
    with pytest.raises(NoPlaceToCut):
        list(encode_long(tokenizer.encode, iter([word + "é" * 100]), lengths))
    assert list(encode_long(tokenizer.encode, iter(["a b" + word[:300] + " c" * 60]), lengths))


def test_a_model_that_sees_the_whole_text_at_once_is_not_cut() -> None:
    """Without a pre-tokenizer any two tokens could become one."""
    it = library()
    whole = it.Tokenizer(it.models.BPE({"a": 0, " ": 1, "b": 2, "a b": 3}, [], unk_token=None))
    with pytest.raises(NoPlaceToCut):
        list(encode_long(whole.encode, iter(["a b " * 400]), Lengths(block=100, tail=50, limit=400, words=4)))


def test_a_border_that_only_chance_puts_there_is_not_taken() -> None:
    """Digits come in threes from their beginning, so a cut among them is only right where a three ends."""
    tokenizer = made("gpt4")
    text = "a " + "1234567890" * 100
    found = [number for ids in encode_long(tokenizer.encode, pieces(text, 77), SHORT) for number in ids]
    assert found == tokenizer.encode(text).ids
