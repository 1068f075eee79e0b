"""Data: every sequence once per epoch, the same everywhere, from every kind of source."""

import asyncio
import dataclasses
import itertools
import json
import random
import subprocess
import sys
import types
from pathlib import Path
from typing import ClassVar

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.config import DataConfig, RunConfig, prolonged
from swarmd.errors import ConfigError
from swarmd.stage import sources
from swarmd.stage.data import Permutation, RunData, load_data
from swarmd.stage.tokens import ByteTokenizer, load_tokens
from tests.stage.toy import toy_run

TEXT = "".join(f"line {number} of a small text\n" for number in range(400))


def small_run(source: str, **changes: object) -> RunConfig:
    data = dataclasses.replace(DataConfig(source=source, held_out=0.1), **changes)  # type: ignore[arg-type]
    return dataclasses.replace(toy_run(), data=data)


def data_of(run: RunConfig, count: int) -> RunData:
    return RunData(run, numpy.arange(count) % 251, "digest")


@given(st.integers(1, 700), st.text(max_size=8))
def test_a_permutation_reaches_every_place_once(count: int, key: str) -> None:
    permutation = Permutation(count, key)
    assert sorted(permutation(place) for place in range(count)) == list(range(count))


def test_a_permutation_depends_on_its_key_and_mixes() -> None:
    one, other = Permutation(1000, "a"), Permutation(1000, "b")
    order = [one(place) for place in range(1000)]
    assert order != [other(place) for place in range(1000)]
    assert sum(abs(a - b) == 1 for a, b in itertools.pairwise(order)) < 20
    assert Permutation(10**12, "big")(10**12 - 1) < 10**12


async def test_every_training_sequence_once_per_epoch_and_held_out_ones_never() -> None:
    run = small_run("unused")
    data = data_of(run, run.model.sequence_length * 60 + 1)  # 60 sequences: 6 held out, 54 trained, so 9 steps an epoch
    assert (data.slots, data.held, data.trained) == (60, 6, 54)
    epochs = []
    for first_step in (1, 10):
        steps = range(first_step, first_step + 9)
        epochs.append([slot for step in steps for index in range(3) for slot in data.training_slots(step, index)])
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert len(set(epochs[0])) == 54
    assert epochs[0] != epochs[1], "another order in every epoch"
    held = {bytes(await data.held_out(index)) for index in range(3)}
    trained = {bytes(await data.microbatch(step, index)) for step in range(1, 19) for index in range(3)}
    assert not held & trained
    assert await data.held_out(0) == await data.held_out(3), "validation begins again"
    assert len(held) == 3


async def test_a_microbatch_is_int32_rows_of_consecutive_tokens_and_depends_on_the_seed() -> None:
    run = small_run("unused")
    ids = numpy.arange(24 * 40 + 1)
    rows = numpy.frombuffer(await RunData(run, ids, "").microbatch(2, 1), dtype="<i4").reshape(2, 25)
    assert (numpy.diff(rows) == 1).all()
    assert (rows[:, 0] % 24 == 0).all()
    other = RunData(dataclasses.replace(run, seed=6), ids, "")
    assert await other.microbatch(2, 1) != await RunData(run, ids, "").microbatch(2, 1)


def test_too_few_tokens_for_a_step_is_said_with_the_number_needed() -> None:
    with pytest.raises(ConfigError, match="too few for one step of 6 sequences; give at least"):
        data_of(small_run("unused"), 100)


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
    monkeypatch.setattr(sources, "PIECE_BYTES", 100)
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


class Builder:
    """Of a dataset that never ends."""

    def __init__(self, files: dict[str, list[str]]) -> None:
        self.config = types.SimpleNamespace(data_files=files)

    def as_streaming_dataset(self, split: str) -> object:
        assert split == "train"
        return iter(lambda: {"text": TEXT}, None)


class Datasets:
    """The library, as far as it is used."""

    files: ClassVar[dict[str, list[str]]] = {"train": ["hf://datasets/owner/name@c0ffee/data.jsonl"]}
    asked: ClassVar[list[object]] = []

    @classmethod
    def load_dataset_builder(cls, name: str, subset: str | None, trust_remote_code: bool = True) -> Builder:
        cls.asked.append((name, subset, trust_remote_code))
        return Builder(cls.files)


def test_a_hugging_face_dataset_is_streamed_only_as_far_as_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", Datasets)
    monkeypatch.setattr(Datasets, "asked", [])
    run = small_run("hf:owner/name:part")
    needed = int((20 * 6 / 0.9 + 2) * 24) + 1
    data = load_data(run, cache_directory=tmp_path)
    assert len(data._ids) == needed
    assert data.trained >= 20 * 6, "no sequence twice in a run that fits its stream"
    assert Datasets.asked == [("owner/name", "part", False)], "no code of the dataset's is run"


def streaming(monkeypatch: pytest.MonkeyPatch, *documents: str) -> None:
    """`hf:any` streams these."""

    class Finite(Builder):
        def as_streaming_dataset(self, split: str) -> object:
            return ({"text": text} for text in documents)

    class Library:
        @staticmethod
        def load_dataset_builder(name: str, subset: str | None) -> Builder:
            return Finite({"train": [f"hf://datasets/{name}@c0ffee/data.jsonl"]})

    monkeypatch.setitem(sys.modules, "datasets", Library)


def sequences(run: RunConfig, data: RunData, steps: range) -> list[bytes]:
    """What is trained on in these steps, one by one."""
    batches = (asyncio.run(data.microbatch(step, index)) for step in steps for index in range(run.microbatches))
    size = 4 * (run.model.sequence_length + 1)
    return [bytes(batch)[at : at + size] for batch in batches for at in range(0, len(bytes(batch)), size)]


LINES = [f"{number} {random.Random(number).randbytes(20).hex()}\n" for number in range(900)]  # no two are alike
TOTALS = (8, 20, 14, 40, 60)  # of a run that is prolonged, shortened, and prolonged again


@pytest.mark.parametrize("source", ["file", "stream", "short stream"])
def test_more_steps_change_nothing_of_what_is_done_and_repeat_nothing(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the source: what steps trained on under one total they would train on under the next, and until all
    sequences had their turn none comes twice.
    """
    streaming(monkeypatch, *LINES[: 60 if source == "short stream" else None])
    (tmp_path / "text.txt").write_text("".join(LINES[:200]))
    run = small_run(str(tmp_path / "text.txt") if source == "file" else "hf:any")
    run = dataclasses.replace(run, steps=TOTALS[0])
    done: list[bytes] = []
    held = bytes(asyncio.run(load_data(run, cache_directory=tmp_path / "0").held_out(0)))
    trained = set[int]()
    for number, steps in enumerate(TOTALS):
        run = prolonged(run, steps)
        data = load_data(run, cache_directory=tmp_path / ("0" if number % 2 else "new"))
        now = sequences(run, data, range(1, steps + 1))
        assert now[: len(done)] == done[: len(now)]
        done = max(now, done, key=len)
        assert len(set(now[: data.trained])) == min(len(now), data.trained), "one came twice in the first epoch"
        assert bytes(asyncio.run(data.held_out(0))) == held, "validation stays comparable"
        trained.add(data.trained)
    assert len(trained) == {"file": 1, "stream": 4, "short stream": 2}[source]


def test_later_epochs_of_a_prolonged_stream_have_each_sequence_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    streaming(monkeypatch, *LINES[:150])
    run = prolonged(dataclasses.replace(small_run("hf:any"), steps=8), 500)
    data = load_data(run, cache_directory=tmp_path)
    assert 8 * 6 < data.trained < 500 * 6 // 2, "the stream ends before the run does"
    epochs = [sorted(data._slot(epoch * data.trained + it) for it in range(data.trained)) for epoch in range(3)]
    assert epochs[0] == epochs[1] == epochs[2]
    assert len(set(epochs[0])) == data.trained
    held = {data._split(place) for place in range(data.held)}
    assert not held & set(epochs[0])
    assert held | set(epochs[0]) == set(range(data.slots))


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (LINES, [*LINES[:5], "another\n", *LINES[6:]]),  # it was edited
        (LINES, LINES[:10]),  # it was cut off
        (LINES[:20], LINES),  # it has grown where the run had come to its end
    ],
)
def test_a_stream_that_is_another_one_now_is_refused(
    before: list[str], now: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = dataclasses.replace(small_run("hf:any"), steps=20)
    streaming(monkeypatch, *before)
    old = load_data(run, cache_directory=tmp_path)
    streaming(monkeypatch, *now)
    with pytest.raises(ConfigError, match="hf:any is no longer what the run has trained on so far"):
        load_data(prolonged(run, 40), cache_directory=tmp_path)
    assert load_data(run, cache_directory=tmp_path).digest == old.digest, "the old tokens are still there"
    assert not list(tmp_path.glob(".tokens-*"))


def test_peers_with_as_many_tokens_but_added_otherwise_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    streaming(monkeypatch, *LINES)
    longer = dataclasses.replace(small_run("hf:any"), steps=20)
    added = load_data(prolonged(dataclasses.replace(longer, steps=8), 20), cache_directory=tmp_path)
    at_once = load_data(longer, cache_directory=tmp_path)
    assert added._ids.tolist() == at_once._ids.tolist()
    assert added.digest != at_once.digest


@pytest.mark.parametrize(
    "name",
    [
        "/etc",
        "../x",
        "owner/..",
        "a/b/c",
        "./a",
        "https://example.org/x",
        "a b/c",
        "owner/name:../x",
        "~/x",
        "o/n\n",
        "",
    ],
)
def test_only_what_can_be_nothing_else_is_a_dataset(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", Datasets)
    with pytest.raises(ConfigError, match="is not the name of a dataset"):
        next(sources.read_hugging_face(name, "text"))
    assert not DataConfig(source=f"hf:{name}").has_open_source


def test_a_local_folder_of_a_dataset_s_name_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", Datasets)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "name").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="would be read instead of the dataset hf:owner/name"):
        next(sources.read_hugging_face("owner/name", "text"))


@pytest.mark.parametrize(
    "file", ["/etc/passwd", "https://example.org/x.jsonl", "hf://datasets/owner/name2/x.jsonl", None]
)
def test_a_dataset_cannot_name_files_that_are_not_its_own(file: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", Datasets)
    monkeypatch.setattr(Datasets, "files", {"test": [*Datasets.files["train"]], "train": [file]} if file else {})
    with pytest.raises(ConfigError, match="would have this machine read"):
        next(sources.read_hugging_face("owner/name", "text"))


def test_a_stream_takes_no_more_of_the_disk_than_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", Datasets)
    run = dataclasses.replace(small_run("hf:owner/name"), steps=10_000)
    with pytest.raises(ConfigError, match=r"allow more with --data-limit GB"):
        load_data(run, cache_directory=tmp_path, limit_bytes=100_000)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == 0, "nothing is left of it"


REAL = """
import datasets, sys
from swarmd.stage import sources
if len(sys.argv) > 2:
    sources._check_files = lambda dataset, files: None
print("|".join(row["text"] for row in sources._train_rows(datasets, sys.argv[1], "")))
"""


@pytest.mark.parametrize("unchecked", [True, False])
def test_the_real_datasets_library_streams_and_says_what_it_reads(tmp_path: Path, unchecked: bool) -> None:
    """In a process of its own: the library changes global state and warns at import."""
    pytest.importorskip("datasets")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": f"row {n}"}) + "\n" for n in range(5)))
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "PATH": "", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", REAL, str(tmp_path), *["unchecked"] * unchecked],
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
        env=environment,
    )
    if unchecked:
        assert done.stdout.strip() == "row 0|row 1|row 2|row 3|row 4", done.stderr
    else:
        assert "rows.jsonl', which isn't part of it" in done.stderr
        assert not done.stdout


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


def test_the_standard_library_is_a_corpus() -> None:
    files = sources.list_files("stdlib")
    names = [name for name, _ in files]
    assert "asyncio/base_events.py" in names
    assert names == sorted(names)
    assert not [name for name in names if name.split("/")[0] in sources.NOT_LIBRARY or "/test/" in name]
    assert sum(path.stat().st_size for _, path in files) > 5e6


def test_a_torn_cache_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    data = DataConfig(source=str(tmp_path / "text.txt"))
    cache = tmp_path / "cache"
    made = load_tokens(data, 256, cache, needed=0)
    ids = made.ids.tolist()
    (file,) = cache.glob("*.tokens")
    file.write_bytes(file.read_bytes()[:-7])
    assert load_tokens(data, 256, cache, needed=0).ids.tolist() == ids
    (manifest,) = cache.glob("*.json")
    manifest.write_text('{"count"')
    assert load_tokens(data, 256, cache, needed=0).digest == made.digest


@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet"])
def test_progress_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(sources, "PIECE_BYTES", 1000)
    path, rows = tmp_path / f"text.{kind}", [{"text": line, "more": "x" * 50} for line in TEXT.splitlines()]
    if kind == "txt":
        path.write_text(TEXT)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pytest.importorskip("pyarrow").Table.from_pylist(rows), path)
    told: list[sources.Reading] = []
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

    def stop(_reading: sources.Reading) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_tokens(DataConfig(source=str(tmp_path / "text.txt")), 256, tmp_path / "cache", needed=0, progress=stop)
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("missing.txt", None, "has no files"),
        ("bad.jsonl", b'{"text": "a"}\nnot json\n', "line 2 is not JSON"),
        ("list.jsonl", b'["a"]\n', "no text in the field text"),
        ("number.jsonl", b'{"text": 3}\n', "no text in the field text"),
        ("bad.parquet", b"PAR0", "is not a Parquet file"),
        ("empty.txt", b"", "holds no text"),
    ],
)
def test_what_is_wrong_with_a_source_is_said(tmp_path: Path, name: str, content: bytes | None, complaint: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=complaint):
        load_data(small_run(str(tmp_path / name)), cache_directory=tmp_path / "cache")


@pytest.mark.parametrize("library", ["datasets", "pyarrow.parquet", "tokenizers"])
def test_a_missing_library_is_named_with_its_extra(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    (tmp_path / "rows.parquet").write_bytes(b"")
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "tokenizer.json").write_text("{}")
    run = {
        "datasets": small_run("hf:owner/name"),
        "pyarrow.parquet": small_run(str(tmp_path / "rows.parquet")),
        "tokenizers": small_run(str(tmp_path / "text.txt"), tokenizer=str(tmp_path / "tokenizer.json")),
    }[library]
    with pytest.raises(ConfigError, match=r"pip install 'swarmd\[data\]'"):
        load_data(run, cache_directory=tmp_path / "cache")
