"""What a tokenizer.json says for inference or another trainer changes no training data."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest

from swarmd.config import DataConfig
from swarmd.errors import ConfigError
from swarmd.text import tokenizer_file
from swarmd.text.long import Lengths
from swarmd.text.reading import Piece
from swarmd.text.token_cache import TokenFile
from swarmd.text.tokenizer import load_tokenizer
from swarmd.text.tokenizer_file import END_TOKENS, FileTokenizer
from swarmd.text.tokens import load_tokens
from tests.text.tokenizers_made import END, KINDS, PROSE, library, made, save

ENDS = {
    "unigram": "</s>",
    "unigram_first": "</s>",
    "unigram_stripped": "</s>",
    "word_piece": "[SEP]",
    "word_level": "<eos>",
}


def tokens_of(text: str, tokenizer: Path, vocabulary: int = 1000) -> TokenFile:
    folder = tokenizer.parent
    (folder / "text.txt").write_text(text, encoding="utf-8")
    data = DataConfig(source=str(folder / "text.txt"), tokenizer=str(tokenizer))
    return load_tokens(data, vocabulary, folder / "cache", needed=0)


def edited(path: Path, **changes: Any) -> Path:
    plain = json.loads(path.read_text(encoding="utf-8"))
    for key, value in changes.items():
        (plain["model"] if key in ("dropout", "alpha", "nbest_size") else plain)[key] = value
    path.write_text(json.dumps(plain), encoding="utf-8")
    return path


TRUNCATION = {"direction": "Right", "max_length": 64, "strategy": "LongestFirst", "stride": 0}
PADDING: dict[str, Any] = {
    "strategy": {"Fixed": 4000},
    "direction": "Right",
    "pad_to_multiple_of": None,
    "pad_id": 0,
    "pad_type_id": 0,
    "pad_token": END,
}
TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": END, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
    "special_tokens": {END: {"id": END, "ids": [0], "tokens": [END]}},
}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("gpt2", {"truncation": TRUNCATION}),
        ("gpt2", {"padding": PADDING}),
        ("gpt2", {"post_processor": TEMPLATE}),
        (
            "gpt2",
            {
                "post_processor": {
                    "type": "ByteLevel",
                    "add_prefix_space": True,
                    "trim_offsets": True,
                    "use_regex": True,
                }
            },
        ),
        ("gpt2", {"dropout": 0.9}),
        ("unigram", {"alpha": 0.1, "nbest_size": 64}),
    ],
)
def test_the_tokens_are_those_of_the_bare_tokenizer(kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
    path = save(made(kind), tmp_path)
    whole = made(kind).encode(PROSE, add_special_tokens=False).ids
    end = made(kind).token_to_id(ENDS.get(kind, END))
    edited(path, **changes)
    assert tokens_of(PROSE, path).ids.tolist() == [*whole, end]


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_gives_the_end_token_or_another_special_one(kind: str, tmp_path: Path) -> None:
    tokenizer = made(kind)
    special = [number for number, it in tokenizer.get_added_tokens_decoder().items() if it.special]
    names = [tokenizer.id_to_token(number) for number in special]
    text = "".join(f"{name} a{name}b {name}{name}\n" for name in names)
    before = set(tokenizer.encode(text).ids)
    assert before & set(special), "without care they come out of a text"
    ids = tokens_of(text, save(tokenizer, tmp_path)).ids.tolist()
    end = tokenizer.token_to_id(ENDS.get(kind, END))
    unknown = {tokenizer.token_to_id(it) for it in ("[UNK]", "<unk>")}
    assert [it for it in ids if it in set(special) - unknown] == [end]
    assert ids[-1] == end


def test_merges_that_would_make_a_special_token_are_left_out(tmp_path: Path) -> None:
    """Files that were converted from SentencePiece have such."""
    it = library()
    merges = [("<", "/"), ("</", "s"), ("</s", ">")]
    vocabulary = {name: number for number, name in enumerate(["<", "/", "s", ">", "</", "</s", "</s>", "b"])}
    tokenizer = it.Tokenizer(it.models.BPE(vocabulary, merges))
    tokenizer.add_special_tokens(["</s>"])
    assert tokens_of("</s>b", save(tokenizer, tmp_path)).ids.tolist() == [5, 3, 7, 6]


def test_special_tokens_beyond_the_model_s_own_keep_their_numbers(tmp_path: Path) -> None:
    """The newer model families have them there, among others that aren't special."""
    it = library()
    tokenizer = it.Tokenizer(it.models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = it.pre_tokenizers.ByteLevel(False), it.decoders.ByteLevel()
    alphabet = it.pre_tokenizers.ByteLevel.alphabet()
    trainer = it.trainers.BpeTrainer(vocab_size=300, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([PROSE], trainer)
    tokenizer.add_special_tokens(["<|begin|>"])
    tokenizer.add_tokens(["<tool>"])
    tokenizer.add_special_tokens(["<|end_of_text|>", "<|begin|> "])
    begin, tool, end = map(tokenizer.token_to_id, ("<|begin|>", "<tool>", "<|end_of_text|>"))
    path = save(tokenizer, tmp_path)
    text = "a <|end_of_text|> <tool> <|begin|> b"
    ids = tokens_of(text, path).ids.tolist()
    assert (ids.count(begin), ids.count(tool), ids.count(end), ids[-1]) == (0, 1, 1, end)
    assert load_tokenizer(str(path)).decode(ids) == text


@pytest.mark.parametrize("name", ["gpt2", "gpt4", "gpt2_with_runs"])
def test_text_comes_back_equal_across_blocks(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = Lengths(block=200, tail=60, words=6)
    monkeypatch.setattr(tokenizer_file, "LENGTHS", lengths)
    tokenizer = FileTokenizer(save(made(name), tmp_path))
    text = PROSE + "🦊é" * 150 + PROSE
    pieces = (Piece(text[at : at + 7], at + 7 >= len(text), "a document") for at in range(0, len(text), 7))
    blocks = list(tokenizer.encode_document(pieces))
    assert len(blocks) > 20
    assert tokenizer.decode(numpy.concatenate(blocks).tolist()) == text


def test_a_document_that_has_no_place_to_be_cut_is_named_with_its_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer_file, "LENGTHS", Lengths(block=200, tail=60, limit=400))
    path = save(made("gpt2"), tmp_path)
    with pytest.raises(ConfigError) as caught:
        tokens_of("é" * 1000, path)
    assert f"{tmp_path / 'text.txt'} has 400 characters in which the tokenizer {path} ends no word" in str(caught.value)


@pytest.mark.parametrize("special", [True, False])
def test_documents_end_with_the_end_token_whatever_it_is_called(special: bool, tmp_path: Path) -> None:
    it = library()
    for name in END_TOKENS:
        vocabulary = {word: number for number, word in enumerate(["[UNK]", name, "a", "b"])}
        tokenizer = it.Tokenizer(it.models.WordLevel(vocabulary, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = it.pre_tokenizers.WhitespaceSplit()
        if special:
            tokenizer.add_special_tokens([name])
        assert tokens_of(f"a {name} b", save(tokenizer, tmp_path)).ids.tolist() == [2, 0, 3, 1], name


def test_a_special_end_token_goes_before_a_word_of_a_usual_name(tmp_path: Path) -> None:
    it = library()
    vocabulary = {word: number for number, word in enumerate(["[UNK]", "</s>", "[SEP]", "a"])}
    tokenizer = it.Tokenizer(it.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = it.pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["[SEP]"])
    assert tokens_of("a </s>", save(tokenizer, tmp_path)).ids.tolist() == [3, 1, 2]


def test_a_tokenizer_without_an_end_token_is_told_with_what_to_do(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    it = library()
    tokenizer = it.Tokenizer(it.models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    path = save(tokenizer, tmp_path)
    assert tokens_of("a", path).ids.tolist() == [1]
    assert f"without a border, since the tokenizer {path} has none of the tokens <|endoftext|>" in caplog.text
    assert "add one to it as a special token" in caplog.text


def test_a_tokenizer_s_folder_names_it(tmp_path: Path) -> None:
    save(made("gpt2"), tmp_path)
    assert load_tokenizer(str(tmp_path)).encode("the fox").tolist() == made("gpt2").encode("the fox").ids


def test_what_a_tokenizer_cannot_encode_is_a_sentence(tmp_path: Path) -> None:
    it = library()
    tokenizer = it.Tokenizer(it.models.WordLevel({"a": 0}, unk_token="[UNK]"))
    with pytest.raises(ConfigError, match="can't encode a text"):
        tokens_of("b", save(tokenizer, tmp_path))


def letters(text: str, whole: bool | None, **options: Any) -> Any:
    """BPE over the letters of a text, or over bytes: those that it has, or, if `whole`, all."""
    it = library()
    tokenizer = it.Tokenizer(it.models.BPE(**options))
    tokenizer.pre_tokenizer = it.pre_tokenizers.ByteLevel(add_prefix_space=False) if whole is not None else None
    alphabet = it.pre_tokenizers.ByteLevel.alphabet() if whole else []
    special = [END, *options.values()]
    trainer = it.trainers.BpeTrainer(
        vocab_size=400, show_progress=False, initial_alphabet=alphabet, special_tokens=special
    )
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


@pytest.mark.parametrize(
    ("whole", "options", "count"), [(None, {}, 5), (False, {}, 9), (True, {}, 0), (None, {"unk_token": "[UNK]"}, 0)]
)
def test_letters_without_a_token_are_counted_and_said(
    whole: bool | None, options: dict[str, Any], count: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The library leaves them out in silence. Of bytes, where the trainer was given no alphabet."""
    tokenizer = letters("the fox", whole, **options)
    text = "the größe 字 fox"
    ids = tokens_of(text, save(tokenizer, tmp_path)).ids.tolist()
    assert ids == [*tokenizer.encode(text).ids, tokenizer.token_to_id(END)]
    said = [it.getMessage() for it in caplog.records if "no tokens for" in it.getMessage()]
    assert len(said) == (count > 0)
    assert not count or f"has no tokens for {count} letters or bytes of {tmp_path / 'text.txt'}" in said[0]


@pytest.mark.parametrize("content", ["[]", "null", "3", "{}", '{"model": 3}', '{"bos_token": "<s>"}', '{"the": 0}'])
def test_another_file_of_json_is_said_to_be_none(content: str, tmp_path: Path) -> None:
    """Such as the other files of a tokenizer's folder."""
    path = tmp_path / "vocab.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"is not a tokenizer\.json \(it describes no model\)"):
        load_tokenizer(str(path))


def test_a_file_that_git_has_not_fetched_is_said(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345678\n")
    with pytest.raises(ConfigError, match=r"tokenizer\.json only stands for the file itself.*git lfs pull"):
        load_tokenizer(str(path))


MISTAKES: list[Callable[[dict[str, Any]], object]] = [
    lambda plain: plain.pop("model"),
    lambda plain: plain["model"].update(vocab=3),
    lambda plain: plain.update(added_tokens=[{}]),
    lambda plain: plain["model"].update(merges=[["a"]]),
]


@pytest.mark.parametrize("mistake", range(len(MISTAKES)))
def test_a_file_that_is_no_tokenizer_is_a_sentence(mistake: int, tmp_path: Path) -> None:
    path = save(made("gpt2"), tmp_path)
    plain = json.loads(path.read_text(encoding="utf-8"))
    MISTAKES[mistake](plain)
    path.write_text(json.dumps(plain), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"is not a tokenizer\.json"):
        load_tokenizer(str(path))
