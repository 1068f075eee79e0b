"""Sources of text: Python's standard library, files, directories, globs, and what the datasets library saved.

Lists the files of a source in an order that depends on their names only, and not on whether they are compressed; reads
their documents by what they hold. Datasets of the Hub are streamed (`hub.py`). Knows no tokens and no run.
"""

import codecs
import os
import shlex
import sysconfig
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from swarmd.errors import ConfigError
from swarmd.files import as_meant, read_json
from swarmd.text.blocks import ARROW_MAGIC, PARQUET_MAGIC, check_fetched, read_blocks, read_head
from swarmd.text.folders import files_below, matching_files
from swarmd.text.plain import read_text
from swarmd.text.reading import Piece, Reading
from swarmd.text.rows import read_arrow, read_documents, read_json_lines, read_parquet

COMPRESSED_SUFFIXES = (".gz", ".zst", ".xz", ".bz2")
LINES_SUFFIXES = (".jsonl", ".ndjson")
TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py", *LINES_SUFFIXES, ".parquet")  # what is taken from a directory
NOT_TEXT_PREFIX = "._"  # of what macOS puts beside a file for itself
LEDGERS, KEY = ("ledger.jsonl", "ledger-void.jsonl"), "identity.key"  # of a daemon whose home lies in the directory
SAVED, SAVED_SPLITS = "state.json", "dataset_dict.json"  # in folders of save_to_disk
STATE_BYTES_LIMIT = 16 << 20  # it names the files
FIRST_SPLIT = "train"

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
        raise ConfigError(f"{error.filename or source} can't be read ({error.strerror}); check --data.") from error
    if not files:
        raise ConfigError(
            f"data source {source} has no files; give stdlib, a file, a glob, hf:OWNER/NAME, or a directory with "
            f"{', '.join(TEXT_SUFFIXES)} files."
        )
    return sorted(files)


def _local_files(source: str) -> list[tuple[str, Path]]:
    path = as_meant(source)
    if path.is_dir():
        if (path / SAVED_SPLITS).is_file():
            return _saved_files(_first_split(path))
        if (path / SAVED).is_file():
            return _saved_files(path)
        found = [it for it in files_below(path) if _plain(it.name)[1] in TEXT_SUFFIXES]
        found = [it for it in found if not it.name.startswith(NOT_TEXT_PREFIX) and not _is_ledger(it)]
        return [(_plain(it.relative_to(path).as_posix())[0], it) for it in found]
    if os.path.lexists(path):
        return [(path.name, path)] if path.exists() else []
    return [(_plain(it.as_posix())[0], it) for it in matching_files(path)]


def _is_ledger(path: Path) -> bool:
    return path.name in LEDGERS and path.with_name(KEY).exists()


def _plain(name: str) -> tuple[str, str]:
    """A file's name as it would be if it weren't compressed, and what that ends in, in small letters."""
    stem, ending = os.path.splitext(name)
    if ending.lower() in COMPRESSED_SUFFIXES:
        name = stem
    return name, os.path.splitext(name)[1].lower()


def _first_split(folder: Path) -> Path:
    """The training split of a saved dataset of several. Raises ConfigError."""
    if (folder / FIRST_SPLIT / SAVED).is_file():
        return folder / FIRST_SPLIT
    splits = sorted(it.parent.name for it in folder.glob(f"*/{SAVED}"))
    raise ConfigError(
        f"{folder} has no split {FIRST_SPLIT} (it has {', '.join(splits) or 'none'}); give the folder of one."
    )


def _saved_files(folder: Path) -> list[tuple[str, Path]]:
    """The files of a dataset in the order of its rows. What else lies there is of its library. Raises ConfigError."""
    state = folder / SAVED
    try:
        names = [it["filename"] for it in read_json(state, STATE_BYTES_LIMIT)["_data_files"]]
        files = [(f"{number:08}", folder / name) for number, name in enumerate(names)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{state} doesn't say which files the dataset has; save it again.") from error
    lacking = next((path for _, path in files if path.parent != folder or not path.is_file()), None)
    if lacking is not None:
        raise ConfigError(f"{state} names {lacking}, which isn't there; save the dataset again.")
    return files


def read_files(files: list[tuple[str, Path]], text_field: str, reading: Reading | None = None) -> Iterator[Piece]:
    """The documents of local files. `reading` is kept current. Raises ConfigError."""
    reading = reading or Reading()
    for (name, path), (other, another) in pairwise(files):
        if name == other:
            reading.remarks.append(f"{path} and {another} were both read; leave one out if they hold the same text")
    for _, path in files:
        try:
            yield from _read_file(path, text_field, reading)
        except OSError as error:
            raise ConfigError(f"{path} can't be read ({error.strerror or error}); check --data.") from error


def _read_file(path: Path, text_field: str, reading: Reading) -> Iterator[Piece]:
    """The documents of a file: by what it holds, and for JSON by what its name ends in."""
    head, (_, ending) = read_head(path), _plain(path.name)
    check_fetched(head, path)
    if head.startswith(PARQUET_MAGIC) or ending == ".parquet":
        rows = read_parquet(path, text_field, reading)
    elif head.startswith(ARROW_MAGIC) or ending == ".arrow":
        rows = read_arrow(path, text_field, reading)
    elif ending in LINES_SUFFIXES:
        rows = read_json_lines(path, reading)
    elif ending == ".json":
        _check_lines(path)
        rows = read_json_lines(path, reading)
    else:
        yield from read_text(read_blocks(path, reading), path, reading)
        return
    yield from read_documents(rows, text_field, str(path), reading)


def _check_lines(path: Path) -> None:
    """Raises ConfigError for a .json file that is one value over many lines, and so has no rows."""
    first = next(read_blocks(path, Reading()), b"").removeprefix(codecs.BOM_UTF8).lstrip()
    if not first.startswith(b"{") or first[1:2] in (b"\n", b"\r"):
        raise ConfigError(
            f"{path} has no row in each line; make rows of it, as with "
            f"jq -c '.[]' {shlex.quote(str(path))} > rows.jsonl, and give those."
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
