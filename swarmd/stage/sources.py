"""Sources of text: Python's standard library, files, directories, JSONL, Parquet and Hugging Face datasets.

Gives documents as pieces of bounded size in an order that depends on names and contents only. Libraries for Parquet
and Hugging Face are extras, imported when they are chosen. Knows no tokens and no run.
"""

import glob
import importlib
import inspect
import os
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swarmd.errors import ConfigError
from swarmd.files import check_regular, open_regular, parse_json

Piece = tuple[bytes, bool]
"""Some of a document's UTF-8 text, and whether the document ends here."""

PIECE_BYTES = 1 << 20  # bytes read at once: bounds memory whatever the file
LINE_BYTES_LIMIT = 64 << 20  # bytes; a longer line of JSONL is not a document
TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py", ".jsonl", ".parquet")  # what is taken from a directory
HF_PREFIX = "hf:"
DATASET_NAME = re.compile("({0}/)?{0}(:{0})?".format("[A-Za-z0-9][A-Za-z0-9._-]{0,95}"))
"""As people write it; a run's settings must name the owner, too (`config.HUB_NAME`)."""

NOT_LIBRARY = (
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "ensurepip",
    "turtledemo",
    "pydoc_data",
)
"""Folders of the standard library that distributions leave out or fill differently, or that are tables rather than
prose.
"""


def list_files(source: str) -> list[tuple[str, Path]]:
    """The files of a local source with the names they are ordered by. Raises ConfigError if there are none."""
    if source == "stdlib":
        return _library_files()
    try:
        files = _local_files(source)
    except OSError as error:  # no right to look there, or a name that can't be
        raise ConfigError(f"data source {source} can't be read ({error.strerror}); check --data.") from error
    if not files:
        raise ConfigError(
            f"data source {source} has no files; give stdlib, a file, directory or glob, or hf:OWNER/NAME."
        )
    return sorted(files)


def _local_files(source: str) -> list[tuple[str, Path]]:
    if glob.has_magic(source):
        found = [Path(name) for name in glob.glob(source, recursive=True)]
        files = [(path.as_posix(), path) for path in found if path.is_file()]
    elif Path(source).is_dir():
        root = Path(source)
        found = [path for path in root.rglob("*") if path.suffix in TEXT_SUFFIXES and path.is_file()]
        files = [(path.relative_to(root).as_posix(), path) for path in found]
    else:
        path = Path(source)
        files = [(path.name, path)] if path.exists() else []
    return files


@dataclass
class Reading:
    """Progress of reading a source. One thread writes it, any may look."""

    total_bytes: int = 0  # of its files; 0: a stream, whose end nobody knows
    read_bytes: int = 0
    total_tokens: int = 0  # that are wanted of a stream; 0: all
    tokens: int = 0  # made of it

    def took(self, nbytes: int) -> None:
        """So many bytes more are read."""
        self.read_bytes += nbytes


def read_files(files: list[tuple[str, Path]], text_field: str, reading: Reading | None = None) -> Iterator[Piece]:
    """The documents of local files, by what their names end in. `reading` is kept current."""
    reading = reading or Reading()
    for _, path in files:
        try:
            if path.suffix == ".jsonl":
                yield from _read_jsonl(path, text_field, reading)
            elif path.suffix == ".parquet":
                yield from _read_parquet(path, text_field, reading)
            else:
                yield from _read_text(path, reading)
        except OSError as error:
            raise ConfigError(f"{path} can't be read ({error.strerror or error}); check --data.") from error


def read_hugging_face(name: str, text_field: str) -> Iterator[Piece]:
    """The training split of `hf:OWNER/NAME` or `hf:OWNER/NAME:SUBSET`, streamed from the Hub and from nowhere else."""
    check_dataset_name(name)
    datasets = _extra("datasets")
    dataset, _, subset = name.partition(":")
    try:
        for row in _train_rows(datasets, dataset, subset):
            yield _field(row, text_field, f"hf:{name}"), True
    except (OSError, ValueError, RuntimeError) as error:
        # The library wraps everything in these three: no such dataset, no network, no permission.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"dataset hf:{name} can't be read ({reason:.200}); check its name and the network."
        ) from error


def check_dataset_name(name: str) -> None:
    """Raises ConfigError for what could be anything else than a dataset of the Hub."""
    dataset = name.partition(":")[0]
    if not DATASET_NAME.fullmatch(name) or ".." in name:
        raise ConfigError(f"hf:{name:.200} is not the name of a dataset; give hf:owner/name or hf:owner/name:subset.")
    if os.path.lexists(dataset):
        raise ConfigError(
            f"{dataset} is a file or folder here, which would be read instead of the dataset hf:{name}; "
            "start swarmd in another directory, or give the path itself as --data."
        )


def _train_rows(datasets: Any, dataset: str, subset: str) -> Iterator[Any]:
    """The rows, without running code of the dataset's. Its description may name any file or address as its data: only
    what lies in the dataset itself is read.
    """
    options = {}
    if "trust_remote_code" in inspect.signature(datasets.load_dataset_builder).parameters:
        options["trust_remote_code"] = False
    builder = datasets.load_dataset_builder(dataset, subset or None, **options)
    _check_files(dataset, [str(file) for files in (builder.config.data_files or {}).values() for file in files])
    yield from builder.as_streaming_dataset(split="train")


def _check_files(dataset: str, files: list[str]) -> None:
    """Raises ConfigError unless all files lie in the dataset."""
    own = (f"hf://datasets/{dataset}@", f"hf://datasets/{dataset}/")
    strange = next((file for file in files if not file.startswith(own)), None if files else "nothing")
    if strange is not None:
        raise ConfigError(
            f"dataset hf:{dataset} would have this machine read {strange!r:.200}, which isn't part of it; "
            "use another dataset."
        )


def _library_files() -> list[tuple[str, Path]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    files = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in NOT_LIBRARY]
        for name in names:
            if name.endswith(".py") and not name.startswith("_sysconfigdata"):  # differs from build to build
                path = Path(folder, name)
                files.append((path.relative_to(root).as_posix(), path))
    if not files:
        raise ConfigError("this Python has no standard library in source form; give --data a text file instead.")
    return sorted(files)


def _read_text(path: Path, reading: Reading) -> Iterator[Piece]:
    """A text file in pieces that end at a line's end where one is near, so that words and characters stay whole."""
    with open_regular(path) as file:
        rest = b""
        while block := file.read(PIECE_BYTES):
            reading.took(len(block))
            piece = rest + block
            cut = piece.rfind(b"\n") + 1 or len(piece)
            yield piece[:cut], False
            rest = piece[cut:]
        yield rest, True


def _read_jsonl(path: Path, text_field: str, reading: Reading) -> Iterator[Piece]:
    with open_regular(path) as file:
        number = 0
        while line := file.readline(LINE_BYTES_LIMIT):
            number += 1
            reading.took(len(line))
            if not line.strip():
                continue
            try:
                row = parse_json(line)
            except ValueError as error:
                raise ConfigError(f"{path} line {number} is not JSON; every line must be one object.") from error
            yield _field(row, text_field, f"{path} line {number}"), True


def _read_parquet(path: Path, text_field: str, reading: Reading) -> Iterator[Piece]:
    parquet = _extra("pyarrow.parquet")
    try:
        check_regular(path)
        with parquet.ParquetFile(path) as file:
            if text_field not in file.schema_arrow.names:
                raise ConfigError(f"{path} has no column {text_field}; set data.text_field to one it has.")
            rows, nbytes = max(1, file.metadata.num_rows), path.stat().st_size
            for batch in file.iter_batches(batch_size=256, columns=[text_field]):
                reading.took(nbytes * batch.num_rows // rows)
                for row in batch.to_pylist():
                    yield _field(row, text_field, str(path)), True
    except ValueError as error:  # pyarrow's ArrowInvalid is one
        raise ConfigError(f"{path} is not a Parquet file ({str(error).splitlines()[0]:.200}); check --data.") from error


def _field(row: Any, text_field: str, where: str) -> bytes:
    text = row.get(text_field) if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise ConfigError(f"{where} has no text in the field {text_field}; set data.text_field to one that has.")
    return text.encode("utf-8", errors="replace")


def _extra(module: str) -> Any:
    """A library that comes with the extra `data`."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        library = module.partition(".")[0]
        raise ConfigError(f"this data source needs {library}; run pip install {library}.") from error
