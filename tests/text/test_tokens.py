"""The cache of tokens: made once, checked, made again when it is torn; progress is told."""

import dataclasses
import itertools
import json
from pathlib import Path

import pytest

from swarmd.config import DataConfig
from swarmd.errors import ConfigError
from swarmd.text import blocks, token_cache
from swarmd.text.data import load_data
from swarmd.text.reading import Reading
from swarmd.text.tokenizer import ByteTokenizer
from swarmd.text.tokens import find_tokens, load_tokens
from tests.text.texts import TEXT, as_before, small_run


def test_a_text_file_becomes_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    run = small_run(str(path))
    data = load_data(run, cache_directory=tmp_path / "cache")
    assert ByteTokenizer().decode(data._ids.tolist()) == TEXT + "\0"
    again = load_data(run, cache_directory=tmp_path / "cache")
    assert again.digest == data.digest
    path.write_text(TEXT.replace("small", "large"))
    assert load_data(run, cache_directory=tmp_path / "cache").digest != data.digest, "a changed file is read again"
    assert not list((tmp_path / "cache").glob(".tokens-*"))


def test_the_same_text_has_one_digest_whatever_it_comes_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "PIECE_BYTES", 100)
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    documents = [TEXT[:5000], TEXT[5000:]]
    folder = tmp_path / "texts"
    folder.mkdir()
    for number, document in enumerate(documents):
        (folder / f"{number}.txt").write_text(document)
    (folder / "picture.png").write_bytes(b"not text")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    parquet.write_table(arrow.table({"text": documents, "other": [1, 2]}), tmp_path / "rows.parquet")
    found = {
        source: load_data(small_run(str(tmp_path / source)), cache_directory=tmp_path / "cache").digest
        for source in ("texts", "texts/*.txt", "rows.jsonl", "rows.parquet")
    }
    assert len(set(found.values())) == 1, found
    elsewhere = load_data(small_run("nowhere.txt"), str(tmp_path / "texts"), cache_directory=tmp_path / "cache")
    assert {elsewhere.digest} == set(found.values()), "a node's own copy may lie elsewhere"


def test_text_and_tokenizer_are_what_the_run_s_digests_name(tmp_path: Path) -> None:
    text, other = tmp_path / "text.txt", tmp_path / "other.txt"
    text.write_text(TEXT)
    other.write_text(TEXT.replace("small", "large"))
    digest = load_data(small_run(str(text)), cache_directory=tmp_path / "cache").digest
    run = small_run("local", tokens_digest=digest)
    assert load_data(run, str(text), cache_directory=tmp_path / "cache").digest == digest
    with pytest.raises(ConfigError, match=r"is not the run's .*the same files as where the run was founded"):
        load_data(run, str(other), cache_directory=tmp_path / "cache")
    coded = small_run("local", tokens_digest=digest, tokenizer="local", tokenizer_digest="0" * 32)
    with pytest.raises(ConfigError, match="is not the run's tokenizer"):
        load_data(coded, str(text), str(other), cache_directory=tmp_path / "cache")


def test_a_tokenizer_file_is_used_and_its_vocabulary_checked(tmp_path: Path) -> None:
    library = pytest.importorskip("tokenizers")
    vocabulary = {word: number for number, word in enumerate(["<|endoftext|>", "[UNK]", "line", "of", "a", "small"])}
    tokenizer = library.Tokenizer(library.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = library.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "text.txt").write_text(TEXT)
    data = DataConfig(source=str(tmp_path / "text.txt"), tokenizer=str(tmp_path / "tokenizer.json"))
    made = load_tokens(data, 6, tmp_path / "cache", needed=0)
    assert made.ids[:7].tolist() == [2, 1, 3, 4, 5, 1, 2]
    assert made.ids[-1] == 0, "documents end with the separator"
    with pytest.raises(ConfigError, match=r"ids up to 5; set model\.vocabulary to at least 6"):
        load_tokens(data, 5, tmp_path / "cache", needed=0)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="is not a tokenizer"):
        load_tokens(data, 6, tmp_path / "cache", needed=0)


def test_a_torn_cache_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    data = DataConfig(source=str(tmp_path / "text.txt"))
    cache = tmp_path / "cache"
    made = load_tokens(data, 256, cache, needed=0)
    ids = made.ids.tolist()
    (file,) = cache.glob("*.tokens")
    file.write_bytes(file.read_bytes()[:-7])
    assert load_tokens(data, 256, cache, needed=0).ids.tolist() == ids
    file.write_bytes(b"")
    assert load_tokens(data, 256, cache, needed=0).digest == made.digest


@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet"])
def test_progress_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(blocks, "PIECE_BYTES", 1000)
    path, rows = tmp_path / f"text.{kind}", [{"text": line, "more": "x" * 50} for line in TEXT.splitlines()]
    if kind == "txt":
        path.write_text(TEXT)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pytest.importorskip("pyarrow").Table.from_pylist(rows), path)
    told: list[Reading] = []
    made = load_tokens(
        DataConfig(source=str(path)),
        256,
        tmp_path / "cache",
        needed=0,
        progress=lambda it: told.append(dataclasses.replace(it)),
    )
    assert len(told) >= 3
    assert all(it.total_bytes == path.stat().st_size for it in told)
    assert all(one.read_bytes <= other.read_bytes <= one.total_bytes for one, other in itertools.pairwise(told))
    assert told[-1].read_bytes > 0.9 * told[-1].total_bytes
    assert told[-1].tokens == len(made.ids)


def test_what_progress_raises_ends_the_work_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)

    def stop(_reading: Reading) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_tokens(DataConfig(source=str(tmp_path / "text.txt")), 256, tmp_path / "cache", needed=0, progress=stop)
    assert list((tmp_path / "cache").iterdir()) == []


def damage(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("place", [0, 100, -1, -2, -10, -20, -30, -60])
def test_a_flipped_bit_is_found_and_said_once(tmp_path: Path, place: int, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    data, cache = DataConfig(source=str(tmp_path / "text.txt")), tmp_path / "cache"
    made = load_tokens(data, 256, cache, needed=0)
    ids = made.ids.tolist()
    (file,) = cache.iterdir()
    damage(file, place)
    for _ in range(2):
        again = load_tokens(data, 256, cache, needed=0)
        assert (again.ids.tolist(), again.digest) == (ids, made.digest)
    assert [it.getMessage() for it in caplog.records if "damaged" in it.getMessage()] == [
        f"{file} is damaged; its tokens are made again"
    ]


def test_checking_tells_how_far_it_is_and_can_be_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_cache, "CHECKED_BYTES", 1000)
    (tmp_path / "text.txt").write_text(TEXT)
    data = DataConfig(source=str(tmp_path / "text.txt"))
    load_tokens(data, 256, tmp_path / "cache", needed=0)
    told: list[tuple[int, int]] = []
    load_tokens(
        data, 256, tmp_path / "cache", needed=0, progress=lambda it: told.append((it.read_bytes, it.total_bytes))
    )
    assert len(told) > 5
    assert told[-1] == (len(TEXT) + 1, len(TEXT) + 1)

    def stop(_reading: Reading) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_tokens(data, 256, tmp_path / "cache", needed=0, progress=stop)


@pytest.mark.parametrize("begun", [True, False])
def test_a_run_goes_on_with_the_same_tokens_or_is_told(tmp_path: Path, begun: bool) -> None:
    """What a release before made of the same text is compared with, and removed once it is of no use."""
    path, cache = tmp_path / "text.txt", tmp_path / "cache"
    path.write_text(TEXT)
    data = as_before(path, cache, [*TEXT.encode(), 0])
    assert find_tokens(data, 256, cache)
    assert bytes(load_tokens(data, 256, cache, needed=0, begun=begun).ids.tolist()) == TEXT.encode() + b"\0"
    assert len(list(cache.iterdir())) == 1

    data = as_before(path, cache, [*TEXT.encode(), 1])
    for _ in range(2):
        if not begun:
            load_tokens(data, 256, cache, needed=0, begun=begun)
            assert len(list(cache.iterdir())) == 1
            continue
        with pytest.raises(
            ConfigError, match=r"tokens that an earlier release made of .*go on with the earlier release"
        ):
            load_tokens(data, 256, cache, needed=0, begun=begun)


def test_a_run_that_is_known_by_old_tokens_is_told(tmp_path: Path) -> None:
    path, cache = tmp_path / "text.txt", tmp_path / "cache"
    path.write_text(TEXT)
    data = as_before(path, cache, [*TEXT.encode(), 1])
    (old,) = cache.glob("*.json")
    named = dataclasses.replace(data, tokens_digest=json.loads(old.read_text())["digest"])
    with pytest.raises(ConfigError, match="tokens that an earlier release made of"):
        load_tokens(named, 256, cache, needed=0)


def test_halves_of_a_release_before_are_removed(tmp_path: Path) -> None:
    path, cache = tmp_path / "text.txt", tmp_path / "cache"
    path.write_text(TEXT)
    for half in ("*.json", "*.tokens"):
        data = as_before(path, cache, [1, 2, 3])
        for it in cache.glob(half):
            it.unlink()
        load_tokens(data, 256, cache, needed=0, begun=True)
        assert len(list(cache.iterdir())) == 1
