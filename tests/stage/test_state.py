"""A stage's state as bytes: the library's own, checked before they are taken, and never twice in memory."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import safetensors.torch
import torch

from swarmd.config import OptimizerConfig
from swarmd.stage import state as states
from swarmd.stage.engine import StageEngine
from swarmd.stage.state import StateReader, write_state
from swarmd.values import HopId
from tests.stage.toy import toy_run

TENSORS = {
    "version": torch.tensor(7),
    "b": torch.arange(12.0).view(3, 4),
    "a": torch.zeros(0),
    "c": torch.arange(5, dtype=torch.uint8),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "other half": torch.ones(2, dtype=torch.float16),
    "z": torch.tensor(-3),
    "turned": torch.arange(6.0).view(2, 3).T,
}


@pytest.mark.parametrize("piece", [5, 16 << 20])
def test_the_bytes_are_those_of_the_library(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "PIECE_BYTES", piece)
    whole = {name: tensor.contiguous() for name, tensor in TENSORS.items()}
    assert bytes(write_state(TENSORS)) == safetensors.torch.save(whole)


@pytest.mark.parametrize("name", ["adamw", "lamb8bit"])
def test_a_stage_s_state_is_the_library_s(name: Literal["adamw", "lamb8bit"]) -> None:
    engine = StageEngine(dataclasses.replace(toy_run(), optimizer=OptimizerConfig(name=name)), 1)
    whole = {name: tensor.contiguous() for name, tensor in engine._state().items()}
    assert bytes(engine.export_state()) == safetensors.torch.save(whole)


@pytest.mark.parametrize("piece", [5, 16 << 20])
def test_what_was_written_is_read_into_tensors_in_place(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "PIECE_BYTES", piece)
    whole = {name: tensor.contiguous() for name, tensor in TENSORS.items()}
    reader = StateReader(safetensors.torch.save(whole), whole)
    assert (reader.version, reader.integer("z")) == (7, -3)
    for name, tensor in whole.items():
        target = torch.full_like(tensor, 99)
        reader.load(name, target)
        assert torch.equal(target, tensor)


def damaged(change: Any) -> bytes:
    """A state whose header somebody has changed."""
    raw = safetensors.torch.save({"version": torch.tensor(7), "b": torch.arange(4.0)})
    length = int.from_bytes(raw[:8], "little")
    plain = json.loads(raw[8 : 8 + length])
    change(plain)
    header = json.dumps(plain).encode()
    return len(header).to_bytes(8, "little") + header + raw[8 + length :]


def moved(plain: dict[str, Any], start: int, stop: int) -> None:
    plain["b"]["data_offsets"] = [start, stop]


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (b"", "its header is not in it"),
        (b"\xff" * 100, "its header is not in it"),
        ((3).to_bytes(8, "little") + b"[1]", "its header is damaged"),
        ((3).to_bytes(8, "little") + b"{{{", "its header is damaged"),
        ((90_000).to_bytes(8, "little") + b"[" * 90_000, "its header is damaged"),
        (damaged(lambda plain: plain["b"].pop("dtype")), "its header is damaged"),
        (damaged(lambda plain: plain["b"].update(dtype="F8_E4M3")), "its header is damaged"),
        (damaged(lambda plain: plain["b"].update(shape=[5])), "a tensor is not as long as its shape"),
        (damaged(lambda plain: plain["b"].update(shape=[-2, -2])), "no count"),
        (damaged(lambda plain: plain["b"].update(shape=[4.0])), "no count"),
        (damaged(lambda plain: moved(plain, 0, 16)), "don't follow each other"),
        (damaged(lambda plain: moved(plain, 12, 28)), "don't follow each other"),
        (damaged(lambda plain: plain.pop("b")), "another length"),
        (damaged(lambda plain: None) + b"more", "another length"),
        (damaged(lambda plain: plain.update(d=plain.pop("b"))), "other tensors than this stage: b, d"),
        (damaged(lambda plain: plain["b"].update(shape=[2, 2])), r"b has shape \(2, 2\)"),
        (safetensors.torch.save({"version": torch.tensor(-1), "b": torch.arange(4.0)}), "of version -1"),
    ],
)
def test_what_is_no_state_of_the_stage_is_refused(state: bytes, words: str) -> None:
    expected = {"version": torch.tensor(0), "b": torch.zeros(4)}
    with pytest.raises(ValueError, match=words):
        StateReader(state, expected)


def test_notes_of_others_in_a_header_are_passed_over() -> None:
    tensors = {"version": torch.tensor(7), "b": torch.arange(4.0)}
    assert StateReader(safetensors.torch.save(tensors, metadata={"by": "somebody"}), tensors).version == 7


def test_a_state_that_does_not_fit_leaves_the_stage_and_its_graphs_as_they_were() -> None:
    run = toy_run()
    engine = StageEngine(run, 0)
    engine.forward(HopId(1, 1), tokens(run), None, codec="fp32")
    before = bytes(engine.export_state())
    with pytest.raises(ValueError, match="safetensors"):
        engine.import_state(before[:-1])
    assert engine.kept == {HopId(1, 1)}
    assert bytes(engine.export_state()) == before
    engine.import_state(before)
    assert engine.kept == set(), "they were of the state that was overwritten"


def tokens(run: Any) -> bytes:
    shape = (run.sequences_per_microbatch, run.model.sequence_length + 1)
    return torch.zeros(shape, dtype=torch.int32).numpy().tobytes()


def test_loading_allocates_nothing_on_the_device() -> None:
    engine = StageEngine(toy_run(), 1)
    places = {name: tensor.data_ptr() for name, tensor in engine._state().items() if tensor.ndim}
    engine.import_state(engine.export_state())
    assert {name: tensor.data_ptr() for name, tensor in engine._state().items() if tensor.ndim} == places


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's account of memory")
@pytest.mark.timeout(120)
def test_an_export_takes_one_state_and_an_import_none() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.stage.state_memory", "768"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["state"] > 200e6
    assert 0.9 * found["state"] < found["export"] < 1.15 * found["state"], found
    assert found["import"] < 0.6 * found["state"], found  # pieces, and what the C library keeps of them; a copy is 1.0
