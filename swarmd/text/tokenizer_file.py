"""A Hugging Face `tokenizer.json` as training reads with it.

Such a file serves inference, and other trainers, too. What would change training data is left out of it: truncation,
padding, what is put around a prompt, and chance (dropout, sampling). The names of special tokens in a text are ordinary
text. The library that reads it is an extra.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy

from swarmd.errors import ConfigError
from swarmd.files import parse_json, read_regular
from swarmd.text.blocks import HEAD_BYTES, check_fetched
from swarmd.text.extras import extra
from swarmd.text.long import LENGTHS, NoPlaceToCut, encode_long, in_steps
from swarmd.text.reading import Piece

FILE_BYTES_LIMIT = 1 << 30  # the largest of today have 40 MB
END_TOKENS = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<|eos|>",
    "<|end▁of▁sentence|>",
    "<｜end▁of▁sentence｜>",
    "<|endofdocument|>",
    "<EOS>",
    "[EOS]",
    "<EOT>",
    "<eod>",
    "[SEP]",
)
"""The usual names of the token after a document, most specific first."""

HIDDEN = "\0"  # before the name of a special token in the model's vocabulary: no text has it
UNKNOWN = HIDDEN + "unknown"
CHANCE = ("dropout", "alpha", "nbest_size")  # settings of models with which the same text gives other tokens each time

Plain = dict[str, Any]


class FileTokenizer:
    """Text to ids by a tokenizer.json."""

    def __init__(self, path: Path) -> None:
        self._path = path
        library = extra("tokenizers", "tokenizer file")
        try:
            content = read_regular(path, FILE_BYTES_LIMIT)
            check_fetched(content[:HEAD_BYTES], path)
            plain = parse_json(content)
            end = prepare(plain)
            self._tokenizer = _load(library, plain)
            self._unknown = name_unknown(plain, library.pre_tokenizers.ByteLevel.alphabet())
            self._counting = None if self._unknown is None else _load(library, plain)
        except ConfigError:
            raise
        except OSError as error:
            raise unreadable(path, error) from error
        except Exception as error:  # the library raises bare Exception for anything wrong with the file
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ConfigError(
                f"{path} is not a tokenizer.json ({reason:.200}); set data.tokenizer to one, or to byte."
            ) from error
        self.separator: int | None = self._tokenizer.token_to_id(end) if end is not None else None
        self.left_out = 0

    def __str__(self) -> str:
        return str(self._path)

    def encode(self, text: str) -> Any:
        """The ids of a text, at once."""
        return numpy.asarray(self._encode(text).ids, dtype=numpy.uint32)

    def encode_document(self, pieces: Iterator[Piece]) -> Iterator[Any]:
        """The ids of a document that comes in pieces. Raises ConfigError."""
        name = ""

        def texts() -> Iterator[str]:
            nonlocal name
            for piece in pieces:
                name = piece.document
                self._count(piece.text)
                yield piece.text

        try:
            for ids in encode_long(self._encode, texts(), LENGTHS):
                yield numpy.asarray(ids, dtype=numpy.uint32)
        except NoPlaceToCut:
            raise ConfigError(
                f"{name} has {LENGTHS.limit:,} characters in which the tokenizer {self} ends no word, and would take "
                "memory without bound; make several documents of it, leave it out, or take another tokenizer."
            ) from None

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids))
        return text

    def _count(self, text: str) -> None:
        """Counts what the tokenizer has no tokens for. Where there can be such, a document takes twice the time."""
        if self._counting is not None:
            for part in in_steps((text,), LENGTHS.block):
                self.left_out += self._counting.encode(part, add_special_tokens=False).ids.count(self._unknown)

    def _encode(self, text: str) -> Any:
        try:
            return self._tokenizer.encode(text, add_special_tokens=False)
        except Exception as error:  # a bare one, such as for a letter that the vocabulary lacks
            raise ConfigError(
                f"the tokenizer {self} can't encode a text ({str(error).splitlines()[0]:.200}); take another one."
            ) from error


def unreadable(path: Path, error: OSError) -> ConfigError:
    """The sentence about a tokenizer's file that can't be read."""
    return ConfigError(f"data.tokenizer {path} can't be read ({error.strerror}); give --tokenizer a tokenizer.json.")


def prepare(plain: Plain) -> str | None:
    """Makes of a tokenizer file's content what training reads with. Returns the name that the token after a document
    then has, None if there is no such token. Raises whatever content that is none leads to.
    """
    if not isinstance(plain, dict) or not isinstance(plain.get("model"), dict):
        raise ValueError("it describes no model")
    plain.update(truncation=None, padding=None, post_processor=None)
    model, added = plain["model"], plain.get("added_tokens") or []
    model.update({key: None for key in CHANCE if key in model})
    special = {token["content"] for token in added if token["special"]}
    own = {_name(entry) for entry in model["vocab"]}
    choices = [names for names in (special, own, {it["content"] for it in added}) if names & set(END_TOKENS)]
    end = next((name for name in END_TOKENS if choices and name in choices[0]), None)
    for token in added:
        token["special"] |= token["content"] == end
    hidden = own & (special | {end})
    _hide(model, added, hidden)
    return HIDDEN + end if end is not None and end in hidden else end


def name_unknown(plain: Plain, alphabet: Sequence[str]) -> int | None:
    """Gives what the model has no token for an id of its own, and returns it. None, and nothing is changed, where no
    text can have such: the model has a token for it, has tokens for all bytes, or would raise. `alphabet`: the letters
    that stand for bytes.
    """
    model = plain["model"]
    if "merges" not in model or model.get("unk_token") is not None or model.get("byte_fallback"):
        return None
    vocabulary = model["vocab"]
    if "ByteLevel" in json.dumps([plain.get("pre_tokenizer"), plain.get("normalizer")]) and {*alphabet} <= {
        *vocabulary
    }:
        return None
    added = (token["id"] for token in plain.get("added_tokens") or [])
    number = max([*vocabulary.values(), *added], default=-1) + 1
    model.update(unk_token=UNKNOWN, vocab={**vocabulary, UNKNOWN: number})
    return number


def _load(library: Any, plain: Plain) -> Any:
    tokenizer = library.Tokenizer.from_str(json.dumps(plain))
    tokenizer.encode_special_tokens = True
    return tokenizer


def _name(entry: Any) -> str:
    """Of a vocabulary's entry, which has a score where the vocabulary is a list."""
    name: str = entry if isinstance(entry, str) else entry[0]
    return name


def _hide(model: Plain, added: list[Plain], names: set[str]) -> None:
    """Renames tokens so that the model finds them in no text: it would take their names for any other word's."""

    def renamed(name: str) -> str:
        return HIDDEN + name if name in names else name

    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {renamed(name): number for name, number in vocabulary.items()}
    else:
        model["vocab"] = [[renamed(name), *score] for name, *score in vocabulary]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = renamed(model["unk_token"])
    if "merges" in model:
        model["merges"] = [it for it in model["merges"] if not names & _merged(it)]
    for token in added:
        token["content"] = renamed(token["content"])


def _merged(merge: Any) -> set[str]:
    """The two tokens of a merge, and what they become."""
    one, other = merge.split(" ") if isinstance(merge, str) else merge
    return {one, other, one + other}
