"""Files and folders are found under the names that people write, and folders of save_to_disk are datasets."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from swarmd.config import DataConfig
from swarmd.errors import ConfigError
from swarmd.files import as_meant
from swarmd.text.reading import Reading
from swarmd.text.sources import list_files, read_files
from swarmd.text.tokens import load_tokens

NAMES = [
    "plain",
    "[2024] corpus",
    "two  words ",
    'it\'s "so"',
    "größe 字 🦊",
    "e\u0301",
    "star*",
    "what?",
    "~",
    "~nobody",
    "-x",
    "$HOME",
    "a\\b",
    "new\nline",
    "%20",
    "{a,b}",
    "#1",
    "hf:x",
    os.fsdecode(b"latin-\xe9"),
]


def texts_of(source: str) -> list[str]:
    return [piece.text for piece in read_files(list_files(source), "text") if piece.text]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_and_a_folder_are_found_by_their_names(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/nowhere")
    folder = tmp_path / name
    folder.mkdir()
    (folder / f"{name}.txt").write_text("one")
    for source in (name, f"{name}/", f"./{name}/{name}.txt", f"{name}/{name}.txt", str(folder), f"{folder}/../{name}"):
        assert texts_of(source) == ["one"], source
    if not name.startswith("~"):
        assert texts_of(f"{name}/*.txt") == ["one"], "a glob in a folder whose name isn't one"
    found = load_tokens(DataConfig(source=str(folder)), 256, tmp_path / "cache", needed=0)
    assert bytes(found.ids.tolist()) == b"one\0"


def test_a_glob_is_one_where_no_file_is_called_so(tmp_path: Path) -> None:
    for name in ("a1.txt", "a2.txt", "b1.txt"):
        (tmp_path / name).write_text(name)
    assert texts_of(f"{tmp_path}/a[12].txt") == ["a1.txt", "a2.txt"]
    (tmp_path / "a[12].txt").write_text("itself")
    assert texts_of(f"{tmp_path}/a[12].txt") == ["itself"]
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.txt").write_text("c")
    assert texts_of(f"{tmp_path}/**/c.txt") == ["c"]


def test_a_tilde_is_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("home")
    assert texts_of("~/a.txt") == ["home"]
    assert texts_of("~/*.txt") == ["home"]
    assert as_meant("~nobody-is-called-so/a") == Path("~nobody-is-called-so/a")


@pytest.mark.parametrize("name", ["A.TXT", "a.Md", "a.JsonL", "a.txt.GZ"])
def test_endings_may_be_in_capitals(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text('{"text": "a"}' if "Json" in name else "a")
    assert texts_of(str(tmp_path)) == ["a"]


def test_what_macos_puts_beside_a_file_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "._a.txt").write_bytes(bytes(100))
    assert texts_of(str(tmp_path)) == ["a"]


def test_a_file_that_lies_there_compressed_too_is_said(tmp_path: Path) -> None:
    """As `gunzip -k` leaves both."""
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"a"))
    (tmp_path / "b.txt").write_text("b")
    reading = Reading()
    assert [piece.text for piece in read_files(list_files(str(tmp_path)), "text", reading) if piece.text] == [*"aab"]
    said = f"{tmp_path}/a.txt and {tmp_path}/a.txt.gz were both read; leave one out if they hold the same text"
    assert reading.remarks == [said]


def test_a_source_that_is_none_is_said_with_what_may_be_one(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"no text")
    with pytest.raises(ConfigError, match=r"has no files; give .* a directory with \.txt"):
        list_files(str(tmp_path))
    with pytest.raises(ConfigError, match="has no files"):
        list_files(f"{tmp_path}/[nothing")


SAVE = """
import datasets, sys
rows = datasets.Dataset.from_dict({"text": [f"row {n}" for n in range(50)], "n": list(range(50))})
splits = datasets.DatasetDict({"train": rows, "test": rows.select([1])})
splits.save_to_disk(sys.argv[1], num_shards={"train": 3, "test": 1})
"""


@pytest.mark.slow
def test_folders_of_save_to_disk_are_datasets(tmp_path: Path) -> None:
    """Saved in a process of its own: the library changes global state and warns at import."""
    pytest.importorskip("datasets")
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "PATH": "", "HOME": str(tmp_path)}
    folder = tmp_path / "[saved]"
    subprocess.run([sys.executable, "-c", SAVE, str(folder)], check=True, timeout=50, env=environment)
    rows = [f"row {number}" for number in range(50)]
    assert len(list_files(str(folder))) == 3
    assert texts_of(str(folder)) == texts_of(str(folder / "train")) == rows
    assert texts_of(str(folder / "test")) == ["row 1"]
    (folder / "train" / "cache-0123.arrow").write_bytes(b"of the library's own")
    assert texts_of(str(folder)) == rows
    (folder / "train" / "state.json").unlink()
    with pytest.raises(ConfigError, match=r"has no split train \(it has test\); give the folder of one"):
        list_files(str(folder))


@pytest.mark.parametrize(
    "state", ["no JSON", "{}", '{"_data_files": [{}]}', '{"_data_files": [{"filename": "../../etc/passwd"}]}']
)
def test_a_saved_dataset_that_lacks_files_is_a_sentence(state: str, tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(state)
    with pytest.raises(ConfigError, match=r"state\.json .*save .*again"):
        list_files(str(tmp_path))


def test_a_saved_dataset_names_its_files_in_order(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    names = ["b.arrow", "a.arrow"]
    for name in names:
        table = arrow.table({"text": [name]})
        with arrow.OSFile(str(tmp_path / name), "wb") as sink, arrow.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    assert texts_of(str(tmp_path)) == names
