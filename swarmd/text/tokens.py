"""The tokens that training reads: a source is tokenised once into a flat file named by what it was made from.

Tokens are a function of the text and the tokenizer alone. Knows nothing of steps or microbatches.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy

from swarmd.config import DataConfig
from swarmd.errors import ConfigError
from swarmd.text.hub import HF_PREFIX, read_hugging_face
from swarmd.text.reading import Piece, Reading
from swarmd.text.sources import list_files, read_files
from swarmd.text.token_cache import (
    ENDING,
    Hears,
    TokenFile,
    id_type,
    open_tokens,
    read_former,
    remove_former,
    sweep,
    write_tokens,
)
from swarmd.text.tokenizer import Ids, Tokenizer, load_tokenizer, tokenizer_digest
from swarmd.text.tokenizer_file import END_TOKENS

NO_LIMIT_BYTES = 1 << 62  # of what this machine's user chose
CACHE_FORMAT = 2  # raised when the same source would give another file
FORMER_FORMAT = 1  # cut documents at each MiB and followed all that a tokenizer file says

log = logging.getLogger(__name__)


def is_streamed(data: DataConfig) -> bool:
    """True if the source is taken only as far as it is needed."""
    return data.source.startswith(HF_PREFIX)


@dataclass(frozen=True)
class _Cached:
    """The files in a cache that one source's tokens may be in."""

    data: DataConfig
    vocabulary: int
    cache: Path
    files: list[tuple[str, Path]]  # none of a stream

    def path(self, needed: int, cache_format: int = CACHE_FORMAT) -> Path:
        """The place of exactly this content: files by name, size and time of change; streams by name and length.
        Raises OSError.
        """
        stats = [(name, str(path), (it := path.stat()).st_size, it.st_mtime_ns) for name, path in self.files]
        tokenizer, kind = tokenizer_digest(self.data.tokenizer), id_type(self.vocabulary).str
        what = [cache_format, self.data.source, tokenizer, self.data.text_field, kind, needed, stats]
        return self.cache / (hashlib.blake2b(json.dumps(what).encode(), digest_size=16).hexdigest() + ENDING)

    def former(self, needed: int) -> TokenFile | None:
        """The tokens that a release before made of the same source."""
        return read_former(self.path(needed, FORMER_FORMAT), self.vocabulary)

    def earlier(self, before: Sequence[int], needed: int, heard: Hears) -> tuple[Ids, bool] | None:
        """The tokens that were taken of a stream last, and whether it ended there."""
        for count in reversed(before):
            # The former first: it is removed once this release has made the same of the source.
            found = self.former(count) or open_tokens(self.path(count), self.vocabulary, heard)
            if found is not None and count < needed:
                return found.ids, len(found.ids) < count
        return None


def load_tokens(
    data: DataConfig,
    vocabulary: int,
    cache: Path,
    *,
    needed: int,
    before: Sequence[int] = (),
    begun: bool = False,
    progress: Callable[[Reading], None] | None = None,
    limit_bytes: int = NO_LIMIT_BYTES,
) -> TokenFile:
    """The source's tokens, from the cache or by making it. A stream ends after `needed` tokens, and may take
    `limit_bytes` on the disk; files are taken whole. `before`: how far the stream was needed earlier, growing; what is
    in the cache of that must be what it begins with. `begun`: the run has trained on what is in this cache. `progress`
    hears after each piece of text how far it is; what it raises ends the work.

    Raises ConfigError: nothing there, not readable, too much, tokens beyond the vocabulary, or other tokens than
    before.
    """
    streamed, heard = is_streamed(data), progress or _silent
    cached = _Cached(data, vocabulary, cache, [] if streamed else list_files(data.source))
    needed = needed if streamed else 0
    try:
        path = cached.path(needed)
    except OSError as error:
        raise ConfigError(f"{error.filename} can't be read ({error.strerror}); check --data.") from error
    try:
        cache.mkdir(parents=True, exist_ok=True)
        sweep(cache)
        made = open_tokens(path, vocabulary, heard)
        if made is None:
            earlier = cached.earlier(before, needed, heard) if streamed else None
            _make(cached, path, needed, earlier, _bounded(heard, limit_bytes // id_type(vocabulary).itemsize, streamed))
            made = open_tokens(path, vocabulary)
    except OSError as error:
        raise ConfigError(
            f"tokens can't be kept in {cache} ({error.strerror or error}); free or change --home."
        ) from error
    assert made is not None, "a token file that was just written can be read"
    _check_former(cached, needed, made, begun)
    for count in (*before, needed) if streamed else (0,):
        remove_former(cached.path(count, FORMER_FORMAT))
    return made


def find_tokens(data: DataConfig, vocabulary: int, cache: Path) -> bool:
    """True if exactly these files, unchanged, were tokenised into this cache before. Reads none of the text."""
    try:
        cached = _Cached(data, vocabulary, cache, list_files(data.source))
        return (open_tokens(cached.path(0), vocabulary) or cached.former(0)) is not None
    except (ConfigError, OSError):
        return False


def _make(cached: _Cached, path: Path, needed: int, earlier: tuple[Ids, bool] | None, heard: Hears) -> None:
    """Writes the source's tokens. `needed`: of a stream."""
    data = cached.data
    reading, tokenizer = Reading(total_tokens=needed), load_tokenizer(data.tokenizer)
    if is_streamed(data):
        pieces = read_hugging_face(data.source.removeprefix(HF_PREFIX), data.text_field, reading)
    else:
        reading.total_bytes = sum(path.stat().st_size for _, path in cached.files)
        pieces = read_files(cached.files, data.text_field, reading)
    ids = _encode_all(pieces, tokenizer)
    if earlier is not None:
        ids = _as_before(ids, earlier[0], data.source, ended=earlier[1])
    write_tokens(path, ids, cached.vocabulary, needed if is_streamed(data) else None, reading, heard)
    for remark in reading.remarks:
        log.warning("%s", remark)
    if tokenizer.left_out:
        log.warning(
            "the tokenizer %s has no tokens for %s letters or bytes of %s, and leaves them out: take one with tokens "
            "for all bytes, or for unknown words, and found the run with that",
            tokenizer,
            f"{tokenizer.left_out:,}",
            data.source,
        )
    if tokenizer.separator is None:
        log.warning(
            "the documents of %s follow each other without a border, since the tokenizer %s has none of the tokens %s: "
            "add one to it as a special token, and found the run with that",
            data.source,
            tokenizer,
            ", ".join(END_TOKENS),
        )


def _check_former(cached: _Cached, needed: int, made: TokenFile, begun: bool) -> None:
    """Raises ConfigError where a run has trained on what a release before made of the same source, and would now get
    others.
    """
    former = cached.former(needed)
    trained = former is not None and (begun or former.digest == cached.data.tokens_digest)
    if former is not None and trained and former.digest != made.digest:
        raise ConfigError(
            f"the run has trained on tokens that an earlier release made of {cached.data.source}, and this one makes "
            "others of it (it follows less of what a tokenizer file says, and tears no letters): go on with the "
            "earlier release, or found a new run with another --home."
        )


def _bounded(heard: Hears, limit: int, streamed: bool) -> Hears:
    """Lets a stream go on as long as it has given no more than so many tokens."""

    def hear(reading: Reading) -> None:
        if streamed and reading.tokens > limit:
            raise ConfigError(
                f"the run's dataset gives more than {limit:,} tokens, which is all that may be kept on this disk; "
                "allow more with --data-limit GB, or serve another stage with --stage."
            )
        heard(reading)

    return hear


def _encode_all(pieces: Iterator[Piece], tokenizer: Tokenizer) -> Iterator[Ids]:
    """The ids of all documents, with the separator after each that isn't empty."""
    end = numpy.asarray([] if tokenizer.separator is None else [tokenizer.separator], dtype=numpy.uint32)
    for first in pieces:
        written = False
        for ids in tokenizer.encode_document(_document(first, pieces)):
            written = written or len(ids) > 0
            yield ids
        if written:
            yield end


def _document(first: Piece, others: Iterator[Piece]) -> Iterator[Piece]:
    """The pieces of one document; the first of them is at hand."""
    for piece in chain((first,), others):
        yield piece
        if piece.ends:
            return


def _as_before(encoded: Iterator[Ids], earlier: Ids, source: str, *, ended: bool) -> Iterator[Ids]:
    """The same ids, compared with what was taken of the stream earlier. `ended`: it had no more then. Raises
    ConfigError where it is another stream now: the steps that are done would not have trained on what it gives.
    """
    place = 0
    for ids in encoded:
        known = earlier[place : place + len(ids)]
        place += len(ids)
        if not numpy.array_equal(ids[: len(known)], known) or (ended and place > len(earlier)):
            break
        yield ids
    else:
        if place >= len(earlier):
            return
    raise ConfigError(
        f"data source {source} is no longer what the run has trained on so far: go back to that version of it, and to "
        "the release that made its tokens, or found a new run with another --home."
    )


def _silent(_reading: Reading) -> None:
    """Tells nobody of the progress."""
