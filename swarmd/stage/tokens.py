"""The file of token ids that training reads.

A source is tokenised once into a flat file named by what it was made from, written beside and renamed, and then
memory-mapped. Knows nothing of steps or microbatches.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy
import numpy.typing

from swarmd.config import DataConfig
from swarmd.errors import ConfigError
from swarmd.files import open_regular, read_json
from swarmd.stage.sources import HF_PREFIX, Piece, Reading, list_files, read_files, read_hugging_face
from swarmd.stage.tokenizer import Ids, Tokenizer, load_tokenizer, tokenizer_digest

NO_LIMIT_BYTES = 1 << 62  # of what this machine's user chose
CACHE_FORMAT = 1  # raised when the same source would give another file
MANIFEST_BYTES_LIMIT = 1 << 16  # three words
HALF_WRITTEN = ".tokens-"  # how the names of files begin that aren't complete yet

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenFile:
    """Ids on disk, memory-mapped."""

    ids: Ids
    digest: str


def is_streamed(data: DataConfig) -> bool:
    """True if the source is taken only as far as it is needed."""
    return data.source.startswith(HF_PREFIX)


def load_tokens(
    data: DataConfig,
    vocabulary: int,
    cache: Path,
    *,
    needed: int,
    before: Sequence[int] = (),
    progress: Callable[[Reading], None] | None = None,
    limit_bytes: int = NO_LIMIT_BYTES,
) -> TokenFile:
    """The source's tokens, from the cache or by making it. A stream ends after `needed` tokens, and may take
    `limit_bytes` on the disk; files are taken whole. `before`: how far the stream was needed earlier, growing; what is
    in the cache of that must be what it begins with. `progress` hears after each piece of text how far it is; what it
    raises ends the work.

    Raises ConfigError: nothing there, not readable, too much, tokens beyond the vocabulary, or another stream than
    before.
    """
    streamed = is_streamed(data)
    files = [] if streamed else list_files(data.source)
    try:
        name = _cache_name(data, vocabulary, files, needed if streamed else 0)
    except OSError as error:
        raise ConfigError(f"{error.filename} can't be read ({error.strerror}); check --data.") from error
    path = cache / f"{name}.tokens"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _sweep(cache)
        found = _open(path, vocabulary)
        if found is not None:
            return found
        reading = Reading(total_tokens=needed if streamed else 0)
        if streamed:
            pieces = read_hugging_face(data.source.removeprefix(HF_PREFIX), data.text_field)
        else:
            reading.total_bytes = sum(path.stat().st_size for _, path in files)
            pieces = read_files(files, data.text_field, reading)
        ids, heard = _encode_all(pieces, load_tokenizer(data.tokenizer)), progress or _silent
        if streamed:
            heard = _bounded(heard, limit_bytes // id_type(vocabulary).itemsize)
        for count in reversed(before if streamed else ()):
            earlier = _open(cache / f"{_cache_name(data, vocabulary, [], count)}.tokens", vocabulary)
            if earlier is not None and count < needed:
                ids = _as_before(ids, earlier.ids, data.source, ended=len(earlier.ids) < count)
                break
        _write(path, ids, vocabulary, needed if streamed else None, reading, heard)
    except OSError as error:
        raise ConfigError(
            f"tokens can't be kept in {cache} ({error.strerror or error}); free or change --home."
        ) from error
    made = _open(path, vocabulary)
    assert made is not None, "a token file that was just written can be read"
    return made


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of another one if all goes well, and else is removed. While it is written it is
    locked: so those of processes that were killed can be told from it.
    """
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=HALF_WRITTEN, delete=False) as file:
        written = Path(file.name)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield cast("BinaryIO", file)
            file.flush()
            os.fsync(file.fileno())
            written.replace(path)
        except BaseException:
            written.unlink(missing_ok=True)
            raise


def _sweep(cache: Path) -> None:
    """Removes what processes that were killed left half written. What can't be removed does no harm but take room."""
    for path in cache.glob(f"{HALF_WRITTEN}*"):
        with contextlib.suppress(OSError), open_regular(path, follow=False) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def _bounded(progress: Callable[[Reading], None], limit: int) -> Callable[[Reading], None]:
    """Lets a stream go on as long as it has given no more than so many tokens."""

    def hear(reading: Reading) -> None:
        if reading.tokens > limit:
            raise ConfigError(
                f"the run's dataset gives more than {limit:,} tokens, which is all that may be kept on this disk; "
                "allow more with --data-limit GB, or serve another stage with --stage."
            )
        progress(reading)

    return hear


def id_type(vocabulary: int) -> "numpy.dtype[Any]":
    """The smallest unsigned type, little-endian, that holds every id."""
    return numpy.dtype("<u1" if vocabulary <= 1 << 8 else "<u2" if vocabulary <= 1 << 16 else "<u4")


def _cache_name(data: DataConfig, vocabulary: int, files: list[tuple[str, Path]], needed: int) -> str:
    """A name for exactly this content: files by name, size and time of change; streams by name and length."""
    stats = [(name, str(path), path.stat().st_size, path.stat().st_mtime_ns) for name, path in files]
    tokenizer = tokenizer_digest(data.tokenizer)
    what = [CACHE_FORMAT, data.source, tokenizer, data.text_field, id_type(vocabulary).str, needed, stats]
    return hashlib.blake2b(json.dumps(what).encode(), digest_size=16).hexdigest()


def find_tokens(data: DataConfig, vocabulary: int, cache: Path) -> bool:
    """True if exactly these files, unchanged, were tokenised into this cache before. Reads none of the text."""
    try:
        path = cache / f"{_cache_name(data, vocabulary, list_files(data.source), 0)}.tokens"
        return _open(path, vocabulary) is not None
    except (ConfigError, OSError):
        return False


def _open(path: Path, vocabulary: int) -> TokenFile | None:
    """The file if it is there and whole: the manifest is written after it, and names its length."""
    manifest = path.with_suffix(".json")
    try:
        said = read_json(manifest, MANIFEST_BYTES_LIMIT)
        count, largest, digest = int(said["count"]), int(said["largest"]), str(said["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # never made, or torn: made again
    if largest >= vocabulary:
        raise ConfigError(f"the tokenizer gives ids up to {largest}; set model.vocabulary to at least {largest + 1}.")
    if not path.is_file() or path.stat().st_size != count * id_type(vocabulary).itemsize:
        return None
    if count == 0:
        raise ConfigError("the data source holds no text; give one that does with --data.")
    return TokenFile(numpy.memmap(path, dtype=id_type(vocabulary), mode="r"), digest)


def _write(
    path: Path,
    encoded: Iterator[Ids],
    vocabulary: int,
    limit: int | None,
    reading: Reading,
    progress: Callable[[Reading], None],
) -> None:
    """Writes the ids and then their manifest, each beside its place and renamed, so that no half is ever taken for
    whole.
    """
    kind = id_type(vocabulary)
    count, largest = 0, 0
    digest = hashlib.blake2b(kind.str.encode(), digest_size=16)
    with _beside(path) as file:
        for ids in encoded:
            taken = ids if limit is None else ids[: limit - count]
            largest = max(largest, int(taken.max(initial=0)))
            block = taken.astype(kind).tobytes()
            digest.update(block)
            file.write(block)
            count += len(taken)
            reading.tokens = count
            progress(reading)
            if limit is not None and count >= limit:
                break
    said = json.dumps({"count": count, "largest": largest, "digest": digest.hexdigest()})
    with _beside(path.with_suffix(".json")) as file:
        file.write(said.encode())
    log.info("%d tokens prepared", count)


def _encode_all(pieces: Iterator[Piece], tokenizer: Tokenizer) -> Iterator[Ids]:
    """The ids of all documents, with the separator after each that isn't empty."""
    separator = tokenizer.separator
    written = False
    for text, ends in pieces:
        if text:
            yield tokenizer.encode(text)
            written = True
        if ends and written:
            if separator is not None:
                yield numpy.asarray([separator], dtype=numpy.uint32)
            written = False


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
        f"data source {source} is no longer what the run has trained on so far: go back to that version of it, or "
        "found a new run with another --home."
    )


def _silent(_reading: Reading) -> None:
    """Tells nobody of the progress."""
