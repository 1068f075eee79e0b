"""Rows without text are left out and counted; a file of them is refused; memory is bounded by the longest row."""

import json
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from swarmd.config import DataConfig
from swarmd.errors import ConfigError
from swarmd.text import rows
from swarmd.text.reading import Reading
from swarmd.text.rows import Row, read_documents
from swarmd.text.sources import list_files, read_files
from swarmd.text.tokens import load_tokens

GOOD = [f"row {number}" for number in range(200)]
BAD_LINES = {
    "is not JSON": b'{"text": "a"',
    "has no text in the field text": b'{"txt": "a"}',
    "has no text in the field text ": b'{"text": null}',
    "has no text in the field text  ": b'"text"',
    "is longer than 1 MiB": b'{"text": "' + b"a" * (1 << 20) + b'"}',
    "is not text: it has characters that are zero": b'{"text": "a\\u0000b"}',
    "is not JSON ": b"[" * 100_000,
}


def write(path: Path, *lines: bytes) -> Path:
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def as_line(text: str) -> bytes:
    return json.dumps({"text": text}).encode()


def texts_of(path: Path, reading: Reading | None = None) -> list[str]:
    return [piece.text for piece in read_files(list_files(str(path)), "text", reading)]


@pytest.mark.parametrize("complaint", BAD_LINES)
def test_one_bad_row_is_left_out_and_said(
    complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rows, "LINE_BYTES_LIMIT", 1 << 20)
    good = [as_line(text) for text in GOOD]
    path = write(tmp_path / "rows.jsonl", *good[:150], BAD_LINES[complaint], *good[150:])
    found = load_tokens(DataConfig(source=str(path)), 256, tmp_path / "cache", needed=0)
    assert bytes(found.ids.tolist()) == "".join(f"{text}\0" for text in GOOD).encode()
    said = f"1 of 201 rows of {path} were left out; the first: {path} line 151 {complaint.strip()}"
    assert [it.getMessage() for it in caplog.records if "left out" in it.getMessage()] == [said]


def test_a_file_of_bad_rows_is_refused_early(tmp_path: Path) -> None:
    """A wrong field isn't found out only at the end."""
    asked = 0

    def endless() -> Iterator[Row]:
        nonlocal asked
        while True:
            asked += 1
            yield Row(f"row {asked}", {"text": "a"} if asked % 2 else {"txt": "b"})

    with pytest.raises(ConfigError, match=r"row 2 has no text in the field text, and so 1,000 of 2,000 rows"):
        for _ in read_documents(endless(), "text", "a stream", Reading()):
            pass
    assert asked == 2000


def test_a_tenth_of_bad_rows_is_refused_at_the_end(tmp_path: Path) -> None:
    good, bad = as_line("a"), b'{"txt": "b"}'
    assert texts_of(write(tmp_path / "few.jsonl", *[good] * 9, bad)) == ["a"] * 9
    with pytest.raises(ConfigError, match=r"line 9 has no text in the field text, and so 1 of 9 rows"):
        texts_of(write(tmp_path / "many.jsonl", *[good] * 8, bad))


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_lines_end_as_people_s_files_do(end: bytes, last: bool, tmp_path: Path) -> None:
    lines = [b"\xef\xbb\xbf" + as_line("ä"), b"", as_line("b\n"), as_line("c")]
    path = tmp_path / "rows.ndjson"
    path.write_bytes(end.join(lines) + end * last)
    assert texts_of(path) == ["ä", "b\n", "c"]


def test_halves_of_surrogate_pairs_are_replaced(tmp_path: Path) -> None:
    assert texts_of(write(tmp_path / "rows.jsonl", b'{"text": "a\\ud800b"}')) == ["a?b"]


def test_a_long_line_takes_memory_for_itself_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "LINE_BYTES_LIMIT", 1 << 20)
    path = tmp_path / "rows.jsonl"
    with path.open("wb") as file:
        for _ in range(20):
            file.write(as_line("a") + b"\n")
        file.write(b"x" * (24 << 20))
    tracemalloc.start()
    try:
        assert texts_of(path) == ["a"] * 20
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def _parquet(folder: Path, texts: list[Any], arrow: Any) -> Path:
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"n": range(len(texts)), "text": texts}), folder / "rows.parquet")
    return folder / "rows.parquet"


def _arrow(path: Path, texts: list[Any], arrow: Any, begin: Any) -> Path:
    table = arrow.table({"text": texts})
    with arrow.OSFile(str(path), "wb") as sink, begin(sink, table.schema) as writer:
        writer.write_table(table)
    return path


def _stream(folder: Path, texts: list[Any], arrow: Any) -> Path:
    return _arrow(folder / "rows.arrow", texts, arrow, arrow.ipc.new_stream)


def _file(folder: Path, texts: list[Any], arrow: Any) -> Path:
    return _arrow(folder / "rows", texts, arrow, arrow.ipc.new_file)


TABLES: list[Callable[[Path, list[Any], Any], Path]] = [_parquet, _stream, _file]


@pytest.mark.parametrize("write_table", TABLES)
def test_tables_give_their_rows_and_leave_out_those_without_text(
    write_table: Callable[[Path, list[Any], Any], Path], tmp_path: Path
) -> None:
    arrow = pytest.importorskip("pyarrow")
    reading = Reading()
    path = write_table(tmp_path, [*GOOD, None, "last"], arrow)
    assert texts_of(path, reading) == [*GOOD, "last"]
    assert (reading.rows, reading.left_out) == (202, 1)
    assert reading.remarks == [
        f"1 of 202 rows of {path} were left out; the first: {path} row 201 has no text in the field text"
    ]
    with pytest.raises(ConfigError, match="has no column other"):
        list(read_files([("", path)], "other"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ConfigError, match=r"can't be read|is not a"):
        texts_of(path)


def test_long_rows_of_parquet_are_read_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = _parquet(tmp_path, ["x" * 50_000 + str(number) for number in range(40)], arrow)
    with parquet.ParquetFile(path) as file:
        assert rows._batch_rows(file.metadata) == rows.BATCH_ROWS
        monkeypatch.setattr(rows, "BATCH_BYTES", 120)
        assert rows._batch_rows(file.metadata) == 1
    assert len(texts_of(path)) == 40
