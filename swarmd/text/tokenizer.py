"""Tokenizers: text to token ids and back, by bytes or by a Hugging Face `tokenizer.json` (`tokenizer_file.py`)."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy
import numpy.typing

from swarmd.files import as_meant, open_regular
from swarmd.text.reading import Piece
from swarmd.text.tokenizer_file import FileTokenizer, unreadable

HASH_BYTES = 1 << 20  # bytes of a tokenizer file hashed at once
BYTE_SEPARATOR = 0  # between documents; no text has such a byte (`rows.py`, `plain.py`)

Ids = numpy.typing.NDArray[numpy.integer[Any]]


class Tokenizer(Protocol):
    """Text to ids and back. Its name in a sentence is its `str`."""

    @property
    def separator(self) -> int | None:
        """The id after each document, if there is one. No text has it."""

    @property
    def left_out(self) -> int:
        """Letters or bytes of the documents so far for which it has no token, and which its ids lack."""

    def encode(self, text: str) -> Ids: ...

    def encode_document(self, pieces: Iterator[Piece]) -> Iterator[Ids]:
        """The ids of one document, the same however it is cut into pieces, in bounded memory. Raises ConfigError."""

    def decode(self, ids: Sequence[int]) -> str: ...


class ByteTokenizer:
    """Every byte is a token: vocabulary 256, no file."""

    separator: int | None = BYTE_SEPARATOR
    left_out = 0

    def __str__(self) -> str:
        return "byte"

    def encode(self, text: str) -> Ids:
        return numpy.frombuffer(text.encode(), dtype=numpy.uint8)

    def encode_document(self, pieces: Iterator[Piece]) -> Iterator[Ids]:
        return (self.encode(piece.text) for piece in pieces)

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode("utf-8", errors="replace")


def load_tokenizer(name: str) -> Tokenizer:
    """`byte`, or the path of a tokenizer.json or its folder. Raises ConfigError."""
    if name == "byte":
        return ByteTokenizer()
    return FileTokenizer(_file(name))


def tokenizer_digest(name: str) -> str:
    """The digest of a tokenizer's file; `byte` has none and gives its name. Raises ConfigError."""
    return name if name == "byte" else _file_digest(_file(name))


def _file(name: str) -> Path:
    """A tokenizer's file, also where its folder is named."""
    path = as_meant(name)
    return path / "tokenizer.json" if (path / "tokenizer.json").is_file() else path


def _file_digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    try:
        with open_regular(path) as file:
            while block := file.read(HASH_BYTES):
                digest.update(block)
    except OSError as error:
        raise unreadable(path, error) from error
    return digest.hexdigest()
