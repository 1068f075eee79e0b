"""Sources of text: files, the standard library, datasets that are streamed; complaints about what is none."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest

from swarmd.config import DataConfig
from swarmd.errors import ConfigError
from swarmd.text import hub, sources
from swarmd.text.data import load_data
from swarmd.text.reading import Reading
from tests.text.texts import TEXT, Builder, small_run


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
        next(hub.read_hugging_face(name, "text", Reading()))
    assert not DataConfig(source=f"hf:{name}").has_open_source


def test_a_local_folder_of_a_dataset_s_name_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", Datasets)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "name").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="would be read instead of the dataset hf:owner/name"):
        next(hub.read_hugging_face("owner/name", "text", Reading()))


@pytest.mark.parametrize(
    "file", ["/etc/passwd", "https://example.org/x.jsonl", "hf://datasets/owner/name2/x.jsonl", None]
)
def test_a_dataset_cannot_name_files_that_are_not_its_own(file: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", Datasets)
    monkeypatch.setattr(Datasets, "files", {"test": [*Datasets.files["train"]], "train": [file]} if file else {})
    with pytest.raises(ConfigError, match="would have this machine read"):
        next(hub.read_hugging_face("owner/name", "text", Reading()))


def test_a_stream_takes_no_more_of_the_disk_than_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", Datasets)
    run = dataclasses.replace(small_run("hf:owner/name"), steps=10_000)
    with pytest.raises(ConfigError, match=r"allow more with --data-limit GB"):
        load_data(run, cache_directory=tmp_path, limit_bytes=100_000)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == 0, "nothing is left of it"


REAL = """
import datasets, sys
from swarmd.text import hub
if len(sys.argv) > 2:
    hub._check_files = lambda dataset, files: None
print("|".join(row["text"] for row in hub._train_rows(datasets, sys.argv[1], "")))
"""


@pytest.mark.slow
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


def test_the_standard_library_is_a_corpus() -> None:
    files = sources.list_files("stdlib")
    names = [name for name, _ in files]
    assert "asyncio/base_events.py" in names
    assert names == sorted(names)
    assert not [name for name in names if name.split("/")[0] in sources.NOT_LIBRARY or "/test/" in name]
    assert sum(path.stat().st_size for _, path in files) > 5e6


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
    with pytest.raises(ConfigError, match=f"pip install {library.removesuffix('.parquet')}"):
        load_data(run, cache_directory=tmp_path / "cache")
