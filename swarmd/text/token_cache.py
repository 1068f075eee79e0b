"""Files of token ids: written beside and renamed, so that none is ever half there, and checked whole when opened.

A file is the ids, little-endian, then a description in JSON, then the description's digest and length. Releases before
kept the description in a file of its own (`read_former`). Knows no text and no tokenizer.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy

from swarmd.errors import ConfigError
from swarmd.files import open_regular, parse_json, read_json
from swarmd.text.reading import Reading
from swarmd.text.tokenizer import Ids

ENDING = ".tokens"
HALF_WRITTEN = ".tokens-"  # how the names of files begin that aren't complete yet
DESCRIPTION_BYTES_LIMIT = 1 << 16  # three words
DIGEST_BYTES = 16
LENGTH_BYTES = 4  # of the description's length
CHECKED_BYTES = 8 << 20  # hashed between two looks at whether that is still wanted

Hears = Callable[[Reading], None]
"""Hears how far it is; what it raises ends the work."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenFile:
    """Ids on disk, memory-mapped."""

    ids: Ids
    digest: str


def id_type(vocabulary: int) -> "numpy.dtype[Any]":
    """The smallest unsigned type, little-endian, that holds every id."""
    return numpy.dtype("<u1" if vocabulary <= 1 << 8 else "<u2" if vocabulary <= 1 << 16 else "<u4")


def open_tokens(path: Path, vocabulary: int, heard: Hears | None = None) -> TokenFile | None:
    """The file if it is there and whole; all of it is read for that where `heard` is given. Raises ConfigError where it
    isn't what the model can take.
    """
    kind = id_type(vocabulary)
    try:
        said = _describe(path)
        count, largest, digest = int(said["count"]), int(said["largest"]), str(said["digest"])
        if heard is not None and _digest(path, count * kind.itemsize, kind, heard) != digest:
            raise ValueError("other ids than were written")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        log.warning("%s is damaged; its tokens are made again", path)
        return None
    if largest >= vocabulary:
        raise ConfigError(f"the tokenizer gives ids up to {largest}; set model.vocabulary to at least {largest + 1}.")
    if count == 0:
        raise ConfigError("the data source holds no text; give one that does with --data.")
    return TokenFile(numpy.memmap(path, dtype=kind, mode="r", shape=(count,)), digest)


def _describe(path: Path) -> Any:
    """The description at a file's end. Raises OSError, ValueError."""
    with open_regular(path) as file:
        end = file.seek(0, os.SEEK_END) - DIGEST_BYTES - LENGTH_BYTES
        if end < 0:
            raise ValueError("it is too short")
        file.seek(end)
        digest, length = file.read(DIGEST_BYTES), int.from_bytes(file.read(LENGTH_BYTES), "little")
        if length > min(end, DESCRIPTION_BYTES_LIMIT):
            raise ValueError("it has no description")
        file.seek(end - length)
        said = file.read(length)
    if hashlib.blake2b(said, digest_size=DIGEST_BYTES).digest() != digest:
        raise ValueError("its description is damaged")
    plain = parse_json(said)
    if plain["bytes"] != end - length:
        raise ValueError("it has another length than it says")
    return plain


def _digest(path: Path, nbytes: int, kind: "numpy.dtype[Any]", heard: Hears) -> str:
    """The digest of the ids as they are on the disk."""
    digest, reading = hashlib.blake2b(kind.str.encode(), digest_size=DIGEST_BYTES), Reading(total_bytes=nbytes)
    with open_regular(path) as file:
        while left := nbytes - reading.read_bytes:
            block = file.read(min(left, CHECKED_BYTES))
            if not block:
                raise ValueError("it is too short")
            digest.update(block)
            reading.took(len(block))
            heard(reading)
    return digest.hexdigest()


def write_tokens(
    path: Path, encoded: Iterator[Ids], vocabulary: int, limit: int | None, reading: Reading, heard: Hears
) -> None:
    """Writes so many ids at most. Raises OSError, and what the iterator and `heard` raise."""
    kind = id_type(vocabulary)
    count, largest = 0, 0
    digest = hashlib.blake2b(kind.str.encode(), digest_size=DIGEST_BYTES)
    with _beside(path) as file:
        for ids in encoded:
            taken = ids if limit is None else ids[: limit - count]
            largest = max(largest, int(taken.max(initial=0)))
            block = taken.astype(kind).tobytes()
            digest.update(block)
            file.write(block)
            count += len(taken)
            reading.tokens = count
            heard(reading)
            if limit is not None and count >= limit:
                break
        plain = {"count": count, "largest": largest, "digest": digest.hexdigest(), "bytes": count * kind.itemsize}
        said = json.dumps(plain).encode()
        file.write(said + hashlib.blake2b(said, digest_size=DIGEST_BYTES).digest())
        file.write(len(said).to_bytes(LENGTH_BYTES, "little"))
    log.info("%d tokens prepared", count)


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


def sweep(cache: Path) -> None:
    """Removes what processes that were killed left half written. What can't be removed does no harm but take room."""
    for path in cache.glob(f"{HALF_WRITTEN}*"):
        with contextlib.suppress(OSError), open_regular(path, follow=False) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


# ------------------------------------------------------------------------------------------------- of releases before


def read_former(path: Path, vocabulary: int) -> TokenFile | None:
    """The file of a release before, if it is there and, by its length, whole."""
    kind = id_type(vocabulary)
    try:
        said = read_json(path.with_suffix(".json"), DESCRIPTION_BYTES_LIMIT)
        count, digest = int(said["count"]), str(said["digest"])
        if count < 1 or path.stat().st_size != count * kind.itemsize:
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return TokenFile(numpy.memmap(path, dtype=kind, mode="r"), digest)


def remove_former(path: Path) -> None:
    """Removes the file of a release before, and its half if there is but one. What can't be removed does no harm."""
    for half in (path.with_suffix(".json"), path):
        with contextlib.suppress(OSError):
            half.unlink()
