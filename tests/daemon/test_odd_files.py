"""Odd things in the place of files: one sentence for those that the user must mend, others are passed over, and nobody
waits for the writer of a FIFO.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from swarmd.config import DataConfig
from swarmd.daemon.home import Home
from swarmd.daemon.store import LocalStore
from swarmd.errors import ConfigError
from swarmd.settings import load_run
from swarmd.sim.planner.devices import find_device
from swarmd.stage.checkpoint import load_stage, read_manifest, read_state, save_stage
from swarmd.text.tokenizer import load_tokenizer
from swarmd.text.tokens import load_tokens

DEEP = b"[" * 100_000
KINDS: dict[str, Callable[[Path], object]] = {
    "FIFO": os.mkfifo,
    "directory": Path.mkdir,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "deep": lambda path: path.write_bytes(DEEP),
    "no text": lambda path: path.write_bytes(b"\xff\xfe\x00" * 1000),
    "link to itself": lambda path: path.symlink_to(path.name),
}
FILES = sorted(set(KINDS) - {"deep", "no text"})


def put(path: Path, kind: str) -> Path:
    """Something odd in the place of a file."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    KINDS[kind](path)
    return path


READERS: dict[str, Callable[[Path], object]] = {
    "node.json": lambda path: Home(path.parent).remembered(),
    "run.json": lambda path: Home(path.parent).remembered_run(),
    "ended.json": lambda path: Home(path.parent).check_not_ended(["a run"]),
    "model.toml": lambda path: load_run(str(path)),
    "profile.json": lambda path: find_device(str(path)),
    "tokenizer.json": lambda path: load_tokenizer(str(path)),
    "tokens.json": lambda path: load_tokens(
        DataConfig(source=str(Path(__file__)), tokenizer=str(path)), 256, path.parent / "cache", needed=0
    ),
    "data.jsonl": lambda path: load_tokens(DataConfig(source=str(path)), 256, path.parent / "cache", needed=0),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_the_user_must_mend_is_one_sentence(tmp_path: Path, name: str, kind: str) -> None:
    with pytest.raises(ConfigError) as caught:
        READERS[name](put(tmp_path / name, kind))
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_home_can_do_without_is_passed_over(tmp_path: Path, kind: str) -> None:
    home = Home(tmp_path)
    put(home.port_file, kind)
    assert home.kept_port() == 0
    put(home.incarnation, kind)
    if kind in FILES:
        with pytest.raises(ConfigError, match="can't read"):
            home.next_incarnation(5)
    else:
        assert home.next_incarnation(1 << 60) == 1 << 60


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("name", ["rows.parquet", "text.txt"])
def test_data_that_is_no_file_is_one_sentence(tmp_path: Path, name: str, kind: str) -> None:
    path = put(tmp_path / name, kind)
    with pytest.raises(ConfigError, match=r"can't be read|has no files"):
        load_tokens(DataConfig(source=str(path)), 256, tmp_path / "cache", needed=0)


@pytest.mark.parametrize("kind", FILES)
def test_a_directory_of_text_may_hold_what_is_no_file(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.txt").write_text("text")
    put(tmp_path / "b.txt", kind)
    assert len(load_tokens(DataConfig(source=str(tmp_path)), 256, tmp_path / "cache", needed=0).ids) == len("text") + 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", ["json", "safetensors"])
async def test_a_checkpoint_that_is_none_is_passed_over(tmp_path: Path, kind: str, suffix: str) -> None:
    for version in (1, 2):
        save_stage(tmp_path / "checkpoints", version, 0, b"state", "a record", 2)
    put(tmp_path / f"checkpoints/step-000002/stage-0.{suffix}", kind)
    found = load_stage(tmp_path / "checkpoints", 0)
    assert found is not None
    assert found.version == 1
    store = LocalStore(Home(tmp_path))
    assert [version for version, *_ in await store.list_checkpoints()] == [1]
    assert await store.load_checkpoint(2, 0) is None
    if suffix == "json":
        assert read_manifest(tmp_path / "checkpoints", 2, 0) is None
    elif kind in FILES:
        assert read_state(tmp_path / "checkpoints", 2, 0, 0, 1) is None


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("name", ["ledger.jsonl", "ledger.jsonl.1", "ledger-void.jsonl"])
def test_a_ledger_that_is_none_is_said_and_not_raised(tmp_path: Path, kind: str, name: str) -> None:
    put(tmp_path / name, kind)
    store = LocalStore(Home(tmp_path))
    store.append_ledger({"step": 1, "record": "a"})
    store.void_ledger(0)
    store.ledger_tail(10)
    assert ("ledger" in store.trouble) or kind == "link to itself"
