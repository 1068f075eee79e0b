"""Rows that each hold a document: of JSON lines, Parquet, Arrow, or a stream.

A row without text is left out and counted, up to a share of its file. Memory is bounded by the longest row.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from swarmd.errors import ConfigError
from swarmd.files import check_regular, parse_json
from swarmd.text.blocks import ARROW_MAGIC, read_blocks, read_head
from swarmd.text.extras import extra
from swarmd.text.plain import check_kind
from swarmd.text.reading import Piece, Reading

LINE_BYTES_LIMIT = 64 << 20  # bytes; a longer line of JSON is not a document
BATCH_BYTES = 16 << 20  # of Parquet rows that are read at once, on average
BATCH_ROWS = 256
BAD_SHARE = 0.1  # of rows: with more, the file or the field is wrong, not the rows
BAD_ROWS_HEARD = 1000  # bad ones after which the share is looked at before the end


class Row(NamedTuple):
    """One row, before it is known whether it holds text."""

    name: str  # in a sentence
    fields: Any
    complaint: str = ""  # how the sentence goes on where it has no fields


def read_documents(rows: Iterable[Row], field: str, source: str, reading: Reading) -> Iterator[Piece]:
    """The texts in a field of rows. Raises ConfigError where too many rows have none."""
    count, bad, first = 0, 0, ""
    for row in rows:
        count += 1
        text, complaint = _text(row, field)
        if complaint:
            bad, first = bad + 1, first or f"{row.name} {complaint}"
            if bad == BAD_ROWS_HEARD:
                _check_share(count, bad, first)
            continue
        yield Piece(text, True, row.name)
    _check_share(count, bad, first)
    reading.rows += count
    reading.left_out += bad
    if bad:
        reading.remarks.append(f"{bad:,} of {count:,} rows of {source} were left out; the first: {first}")


def _check_share(count: int, bad: int, first: str) -> None:
    if bad > BAD_SHARE * count:
        others = f", and so {bad:,} of {count:,} rows" if count > 1 else ""
        raise ConfigError(
            f"{first}{others}; every row must be one object with its text in the field that data.text_field names."
        )


def _text(row: Row, field: str) -> tuple[str, str]:
    """The text of a row, and what is wrong with it, "" if it is good."""
    if row.complaint:
        return "", row.complaint
    text = row.fields.get(field) if isinstance(row.fields, dict) else None
    if not isinstance(text, str):
        return "", f"has no text in the field {field}"
    if "\0" in text:  # a byte tokenizer ends documents with it
        return "", "is not text: it has characters that are zero"
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode(errors="replace").decode()  # halves of surrogate pairs, which JSON may have
    return text, ""


def read_json_lines(path: Path, reading: Reading) -> Iterator[Row]:
    """The rows of a file with an object in each line. Raises OSError, ConfigError."""
    for number, line in enumerate(_lines(path, reading), 1):
        name = f"{path} line {number}"
        if line is None:
            yield Row(name, None, f"is longer than {LINE_BYTES_LIMIT >> 20} MiB")
        elif line.strip():
            try:
                fields, complaint = parse_json(line), ""
            except ValueError:
                fields, complaint = None, "is not JSON"
            yield Row(name, fields, complaint)


def _lines(path: Path, reading: Reading) -> Iterator[bytearray | None]:
    """The lines of a file; None for each that is too long to be held."""
    held, too_long = bytearray(), False
    for number, block in enumerate(read_blocks(path, reading)):
        if number == 0:
            check_kind(block, path)
        start = 0
        while (end := block.find(b"\n", start) + 1) > 0:
            held += block[start:end]
            line = None if too_long or len(held) > LINE_BYTES_LIMIT else held
            held, too_long, start = bytearray(), False, end
            yield line
        held += block[start:]
        if len(held) > LINE_BYTES_LIMIT:
            held, too_long = bytearray(), True
    if held or too_long:
        yield None if too_long else held


def read_parquet(path: Path, field: str, reading: Reading) -> Iterator[Row]:
    """The rows of a Parquet file. Raises OSError, ConfigError."""
    parquet = extra("pyarrow.parquet")
    try:
        check_regular(path)
        with parquet.ParquetFile(path) as file:
            _check_column(file.schema_arrow.names, field, path)
            shape = max(1, file.metadata.num_rows), path.stat().st_size
            batches = file.iter_batches(batch_size=_batch_rows(file.metadata), columns=[field])
            yield from _batches(batches, field, path, shape, reading)
    except ValueError as error:  # pyarrow's ArrowInvalid is one
        raise ConfigError(f"{path} is not a Parquet file ({str(error).splitlines()[0]:.200}); check --data.") from error


def _batch_rows(metadata: Any) -> int:
    """Rows to be read at once, fewer where they are long."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    longest = max((it.total_byte_size / max(1, it.num_rows) for it in groups), default=0.0)
    return max(1, min(BATCH_ROWS, int(BATCH_BYTES / max(1.0, longest))))


def read_arrow(path: Path, field: str, reading: Reading) -> Iterator[Row]:
    """The rows of an Arrow file or stream, as `save_to_disk` of the datasets library writes it. Raises OSError,
    ConfigError.
    """
    arrow = extra("pyarrow")
    try:
        check_regular(path)
        is_file = read_head(path).startswith(ARROW_MAGIC)
        with arrow.memory_map(str(path)) as source:
            table = arrow.ipc.open_file(source).read_all() if is_file else arrow.ipc.open_stream(source).read_all()
            _check_column(table.schema.names, field, path)  # the table lies in the file, not in memory
            shape = max(1, table.num_rows), path.stat().st_size
            yield from _batches(table.select([field]).to_batches(BATCH_ROWS), field, path, shape, reading)
    except ValueError as error:
        raise ConfigError(f"{path} is not an Arrow file ({str(error).splitlines()[0]:.200}); check --data.") from error


def _check_column(names: list[str], field: str, path: Path) -> None:
    if field not in names:
        raise ConfigError(f"{path} has no column {field}; set data.text_field to one it has.")


def _batches(batches: Iterable[Any], field: str, path: Path, shape: tuple[int, int], reading: Reading) -> Iterator[Row]:
    """The rows of record batches. `shape`: rows and bytes of the file."""
    (rows, nbytes), number = shape, 0
    for batch in batches:
        reading.took(nbytes * batch.num_rows // rows)
        for value in batch.column(0):
            number += 1
            try:
                yield Row(f"{path} row {number}", {field: value.as_py()})
            except UnicodeDecodeError:
                yield Row(f"{path} row {number}", None, "is not UTF-8")
