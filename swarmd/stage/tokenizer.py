"""Tokenizers: text to token ids and back, by bytes or by a Hugging Face `tokenizer.json`.

The library for the latter is an extra, imported when one is chosen.
"""

import hashlib
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy
import numpy.typing

from swarmd.errors import ConfigError
from swarmd.files import check_regular, open_regular

HASH_BYTES = 1 << 20  # bytes of a tokenizer file hashed at once
END_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")  # the usual names, most specific first
BYTE_SEPARATOR = 0  # between documents; text has no such byte

Ids = numpy.typing.NDArray[numpy.integer[Any]]


class Tokenizer(Protocol):
    """Text to ids and back."""

    @property
    def separator(self) -> int | None:
        """The id between documents, if there is one."""

    def encode(self, text: bytes) -> Ids: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class ByteTokenizer:
    """Every byte is a token: vocabulary 256, no file."""

    separator: int | None = BYTE_SEPARATOR

    def encode(self, text: bytes) -> Ids:
        return numpy.frombuffer(text, dtype=numpy.uint8)

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode("utf-8", errors="replace")


class FileTokenizer:
    """A Hugging Face `tokenizer.json`."""

    def __init__(self, path: Path) -> None:
        try:
            library = importlib.import_module("tokenizers")
        except ImportError as error:
            raise ConfigError("a tokenizer file needs tokenizers; run pip install tokenizers.") from error
        try:
            check_regular(path)
            self._tokenizer = library.Tokenizer.from_file(str(path))
        except OSError as error:
            raise ConfigError(
                f"data.tokenizer {path} can't be read ({error.strerror}); give --tokenizer a tokenizer.json."
            ) from error
        except Exception as error:  # the library raises bare Exception for anything wrong with the file
            raise ConfigError(
                f"{path} is not a tokenizer.json ({error}); set data.tokenizer to one, or to byte."
            ) from error
        known = (self._tokenizer.token_to_id(token) for token in END_TOKENS)
        self.separator: int | None = next((number for number in known if number is not None), None)

    def encode(self, text: bytes) -> Ids:
        encoded = self._tokenizer.encode(text.decode("utf-8", errors="replace"), add_special_tokens=False)
        return numpy.asarray(encoded.ids, dtype=numpy.uint32)

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids))
        return text


def load_tokenizer(name: str) -> Tokenizer:
    """`byte`, or the path of a tokenizer.json. Raises ConfigError."""
    if name == "byte":
        return ByteTokenizer()
    return FileTokenizer(Path(name))


def tokenizer_digest(name: str) -> str:
    """The digest of a tokenizer's file; `byte` has none and gives its name. Raises ConfigError."""
    return name if name == "byte" else _file_digest(Path(name))


def _file_digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    try:
        with open_regular(path) as file:
            while block := file.read(HASH_BYTES):
                digest.update(block)
    except OSError as error:
        raise ConfigError(
            f"data.tokenizer {path} can't be read ({error.strerror}); give --tokenizer a tokenizer.json."
        ) from error
    return digest.hexdigest()
