"""Datasets of the Hugging Face Hub, streamed. The library for them is an extra, imported when one is chosen.

No code of a dataset's is run, and nothing is read but what lies in it.
"""

import inspect
import os
import re
from collections.abc import Iterator
from typing import Any

from swarmd.errors import ConfigError
from swarmd.text.extras import extra
from swarmd.text.reading import Piece, Reading
from swarmd.text.rows import Row, read_documents

HF_PREFIX = "hf:"
DATASET_NAME = re.compile("({0}/)?{0}(:{0})?".format("[A-Za-z0-9][A-Za-z0-9._-]{0,95}"))
"""As people write it; a run's settings must name the owner, too (`config.HUB_NAME`)."""


def read_hugging_face(name: str, text_field: str, reading: Reading) -> Iterator[Piece]:
    """The training split of `hf:OWNER/NAME` or `hf:OWNER/NAME:SUBSET`, streamed from the Hub and from nowhere else."""
    check_dataset_name(name)
    datasets = extra("datasets")
    dataset, _, subset = name.partition(":")
    try:
        yield from read_documents(_rows(datasets, dataset, subset), text_field, f"hf:{name}", reading)
    except (OSError, ValueError, RuntimeError) as error:
        # The library wraps everything in these three: no such dataset, no network, no permission.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"dataset hf:{name} can't be read ({reason:.200}); check its name and the network."
        ) from error


def _rows(datasets: Any, dataset: str, subset: str) -> Iterator[Row]:
    for number, row in enumerate(_train_rows(datasets, dataset, subset), 1):
        yield Row(f"hf:{dataset} row {number}", row)


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
