"""A text, runs over it, and its tokens as a release before kept them."""

import dataclasses
import hashlib
import json
import types
from pathlib import Path

from swarmd.config import DataConfig, RunConfig
from swarmd.text import tokens
from swarmd.text.sources import list_files
from tests.stage.toy import toy_run

TEXT = "".join(f"line {number} of a small text\n" for number in range(400))


def small_run(source: str, **changes: object) -> RunConfig:
    data = dataclasses.replace(DataConfig(source=source, held_out=0.1), **changes)  # type: ignore[arg-type]
    return dataclasses.replace(toy_run(), data=data)


def as_before(path: Path, cache: Path, ids: list[int]) -> DataConfig:
    """The cache as a release before left it, and what it is of."""
    data = DataConfig(source=str(path))
    cached = tokens._Cached(data, 256, cache, list_files(str(path)))
    file = cached.path(0, tokens.FORMER_FORMAT)
    cache.mkdir(exist_ok=True)
    file.write_bytes(bytes(ids))
    digest = hashlib.blake2b(b"|u1" + bytes(ids), digest_size=16).hexdigest()
    file.with_suffix(".json").write_text(json.dumps({"count": len(ids), "largest": max(ids), "digest": digest}))
    return data


class Builder:
    """Of a dataset that never ends."""

    def __init__(self, files: dict[str, list[str]]) -> None:
        self.config = types.SimpleNamespace(data_files=files)

    def as_streaming_dataset(self, split: str) -> object:
        assert split == "train"
        return iter(lambda: {"text": TEXT}, None)
