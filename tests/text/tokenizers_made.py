"""Small tokenizers of every kind, trained here: byte-level BPE, WordPiece, Unigram, WordLevel, with normalizers."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

PROSE = (
    "The quick brown fox jumps over the lazy dog, and 1234567 others don't. Straße, café, naïve:\n"
    "in 2023 «größere» Wörter; déjà vu?\n\n\tdef f(x):\n\t\treturn x + 1  # done\n"
) * 40
END = "<|endoftext|>"
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def library() -> Any:
    return pytest.importorskip("tokenizers")


def bpe(pre: Any, normalizer: Any = None, **options: Any) -> Any:
    """Over bytes."""
    it = library()
    made = it.Tokenizer(it.models.BPE(**options))
    made.pre_tokenizer, made.decoder = pre, it.decoders.ByteLevel()
    if normalizer is not None:
        made.normalizer = normalizer
    alphabet = it.pre_tokenizers.ByteLevel.alphabet()
    trainer = it.trainers.BpeTrainer(
        vocab_size=400, show_progress=False, initial_alphabet=alphabet, special_tokens=[END]
    )
    made.train_from_iterator([PROSE], trainer)
    return made


def gpt2() -> Any:
    return bpe(library().pre_tokenizers.ByteLevel(add_prefix_space=False))


def gpt2_with_runs() -> Any:
    """With tokens for runs of blanks that are found before words are, as code models have them."""
    made = gpt2()
    made.add_tokens([library().AddedToken(" " * count, normalized=False) for count in (2, 4, 8)])
    return made


def gpt4() -> Any:
    it = library()
    split = it.pre_tokenizers.Split(it.Regex(GPT4), "isolated")
    byte_level = it.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return bpe(it.pre_tokenizers.Sequence([split, byte_level]), it.normalizers.NFC(), ignore_merges=True)


def roberta() -> Any:
    return bpe(library().pre_tokenizers.ByteLevel(add_prefix_space=True))


def word_piece() -> Any:
    it = library()
    made = it.Tokenizer(it.models.WordPiece(unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = it.normalizers.BertNormalizer(), it.pre_tokenizers.BertPreTokenizer()
    trainer = it.trainers.WordPieceTrainer(vocab_size=300, show_progress=False, special_tokens=["[UNK]", "[SEP]"])
    made.train_from_iterator([PROSE], trainer)
    return made


def unigram(normalizer: Any = None, scheme: str = "always") -> Any:
    it = library()
    made = it.Tokenizer(it.models.Unigram())
    made.normalizer = normalizer or it.normalizers.NFKC()
    made.pre_tokenizer = it.pre_tokenizers.Metaspace(prepend_scheme=scheme)
    made.decoder = it.decoders.Metaspace(prepend_scheme=scheme)
    trainer = it.trainers.UnigramTrainer(
        vocab_size=200, show_progress=False, special_tokens=["<unk>", "</s>"], unk_token="<unk>"
    )
    made.train_from_iterator([PROSE], trainer)
    return made


def unigram_first() -> Any:
    it = library()
    normalizer = it.normalizers.Sequence([it.normalizers.Lowercase(), it.normalizers.Replace(it.Regex(" {2,}"), " ")])
    return unigram(normalizer, "first")


def unigram_stripped() -> Any:
    it = library()
    parts = [it.normalizers.Strip(), it.normalizers.NFD(), it.normalizers.StripAccents()]
    return unigram(it.normalizers.Sequence(parts))


def word_level() -> Any:
    it = library()
    made = it.Tokenizer(it.models.WordLevel(unk_token="[UNK]"))
    made.pre_tokenizer = it.pre_tokenizers.Sequence(
        [it.pre_tokenizers.WhitespaceSplit(), it.pre_tokenizers.Digits(individual_digits=False)]
    )
    trainer = it.trainers.WordLevelTrainer(vocab_size=100, show_progress=False, special_tokens=["[UNK]", "<eos>"])
    made.train_from_iterator([PROSE], trainer)
    return made


KINDS: dict[str, Callable[[], Any]] = {
    it.__name__: it
    for it in (
        gpt2,
        gpt2_with_runs,
        gpt4,
        roberta,
        word_piece,
        unigram,
        unigram_first,
        unigram_stripped,
        word_level,
    )
}


@cache
def made(kind: str) -> Any:
    """A tokenizer, trained once; not to be changed."""
    return KINDS[kind]()


def save(tokenizer: Any, folder: Path) -> Path:
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return path
