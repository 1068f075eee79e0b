"""A text, and runs over it."""

import dataclasses
import types

from swarmd.config import DataConfig, RunConfig
from tests.stage.toy import toy_run

TEXT = "".join(f"line {number} of a small text\n" for number in range(400))


def small_run(source: str, **changes: object) -> RunConfig:
    data = dataclasses.replace(DataConfig(source=source, held_out=0.1), **changes)  # type: ignore[arg-type]
    return dataclasses.replace(toy_run(), data=data)


class Builder:
    """Of a dataset that never ends."""

    def __init__(self, files: dict[str, list[str]]) -> None:
        self.config = types.SimpleNamespace(data_files=files)

    def as_streaming_dataset(self, split: str) -> object:
        assert split == "train"
        return iter(lambda: {"text": TEXT}, None)
