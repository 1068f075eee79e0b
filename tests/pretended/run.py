"""`python -m tests.pretended.run GUARD CARD [FAULT]`: what the stages of every preset do on a card, an object a line.

With a fault, one stage in which something is done that must show.
"""

import dataclasses
import gc
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy

from swarmd.config import RunConfig
from swarmd.settings import load_run, preset_names
from swarmd.values import Encoded, HopId
from tests.pretended.device import CARDS, Card, Device, load_guard, pretended

PART = 4 << 20  # elements of a part of a round, as swarmd/swarm/rounds/parts.py cuts it
ENDLESS = 1 << 60  # bytes


class Rehearsal:
    """One stage, through all that an engine does."""

    def __init__(self, run: RunConfig, stage: int, card: Card, device: Device) -> None:

        from swarmd.stage.engine import StageEngine

        self.run, self.device = run, device
        self.found: dict[str, Any] = {"preset": run.name, "stage": stage}
        with device.measured() as self.found["build"]:
            self.engine = StageEngine(run, stage, "cuda:0")
        assert self.engine.dtype == card.dtype, "by itself"
        self.found["parameters"] = 4 * self.engine.gradient_size
        shape = (run.sequences_per_microbatch, run.model.sequence_length, run.model.hidden)
        self.tokens = bytes(4 * shape[0] * (shape[1] + 1))
        self.activation = None if stage == 0 else zeros(shape, run.codecs.activations)
        self.gradient = zeros(shape, run.codecs.gradients)

    def hop(self, index: int, kind: str) -> None:
        """A microbatch forward and back."""
        engine, hop, codecs = self.engine, HopId(1, index), self.run.codecs
        if engine.module.is_tail:
            with self.device.measured() as self.found[f"tail, {kind}"]:
                engine.tail(hop, self.tokens, self.activation, codec=codecs.gradients)
            return
        with self.device.measured() as self.found[f"forward, {kind}"]:
            engine.forward(hop, self.tokens, self.activation, codec=codecs.activations)
        with self.device.measured() as self.found[f"backward, {kind}"]:
            engine.backward(hop, self.gradient, codec=codecs.gradients)

    def hops(self) -> None:
        """A microbatch for each way to keep a forward, and one of validation."""
        keeping, tail = self.engine.keeping, self.engine.module.is_tail
        self.engine.keeping = dataclasses.replace(keeping, recompute="never")
        self.hop(0, "graphs")
        self.engine.keeping = dataclasses.replace(keeping, recompute="block")
        for index, kind, limit in ((1, "block", ENDLESS), (2, "source", 0)):
            self.engine.graphs.limit = limit
            if index == 1 or not tail:
                self.hop(index, kind)
        self.engine.keeping = keeping
        work = self.engine.tail if tail else self.engine.forward
        with self.device.measured() as self.found["evaluation"]:
            work(HopId(1, 9), self.tokens, self.activation, codec=self.run.codecs.activations, evaluate=True)

    def round(self) -> None:
        """A round of three members, and the step's end."""
        engine, codec, size, step = self.engine, self.run.codecs.averaging, self.engine.gradient_size, 1
        engine.freeze(step)
        with self.device.measured() as self.found["contribution"]:
            part = engine.contribution(step, 0, min(size, PART), codec=codec)
        with self.device.measured() as self.found["reduce"]:
            engine.reduce([part] * 3, 100, codec=codec)
        parts = [zeros((min(PART, size - start),), codec) for start in range(0, size, PART)]
        with self.device.measured() as self.found["assemble"]:
            engine.assemble(step, parts)
        with self.device.measured() as self.found["apply"]:
            engine.apply(step, learning_rate=1e-4, clip_factor=1.0)

    def state(self) -> None:
        """Export, and import of what was exported."""
        with self.device.measured() as self.found["export"]:
            state = self.engine.export_state()
        with self.device.measured() as self.found["import"]:
            self.engine.import_state(state)


def zeros(shape: tuple[int, ...], codec: str) -> Encoded:
    """A tensor of zeros as it comes over the wire."""
    from swarmd.stage.codec import _CODECS

    layout = _CODECS[codec].layout(int(numpy.prod(shape)))
    return Encoded(codec, shape, tuple(memoryview(bytes(size * dtype.itemsize)) for dtype, size in layout))


class Shelf:
    """In the place of safetensors: keeps the arrays themselves, since copies of gigabytes of zeros tell nothing."""

    class SafetensorError(Exception):
        pass

    def __init__(self) -> None:
        self.numpy = self
        self.kept: dict[str, Any] = {}

    def save(self, arrays: dict[str, Any]) -> bytes:
        names = {"float32": "F32", "int64": "I64", "uint8": "U8"}
        self.kept = {
            name: {"shape": it.shape, "dtype": names[it.dtype.name], "data": memoryview(it.reshape(-1)).cast("B")}
            for name, it in arrays.items()
        }
        return b""

    def deserialize(self, _: bytes) -> dict[str, Any]:
        return self.kept


def stages(run: RunConfig) -> list[int]:
    """One of each kind: those between head and tail are alike."""
    return sorted({0, 1, run.model.stages - 1})


def rehearse(card: Card, device: Device) -> Iterator[dict[str, Any]]:
    """Every stage of every preset. Rounds and states are in fp32 on every card, so one of them plays these."""
    for preset in preset_names():
        run = load_run(preset)
        for stage in stages(run):
            it = Rehearsal(run, stage, card, device)
            it.hops()
            if card.name == "sm_80":
                it.round()
                it.state()
            found = it.found
            del it  # the next stage comes, as when a peer moves
            gc.collect()
            yield {**found, "left": device.now}


def fail(fault: str, card: Card, device: Device) -> Iterator[dict[str, Any]]:
    """A stage in which something is done that must show: the figures, or the error of the fake tensors."""
    import torch

    from swarmd.stage import engine, loss
    from swarmd.stage.model import StageModule

    apply, chunked = StageModule.apply_segment, loss.chunked_loss
    added: dict[str, Any] = {
        "copy": lambda x: x.cpu(),
        "synchronisation": lambda x: torch.cuda.synchronize(),
        "number": lambda x: float(x.sum()),
        "cpu tensor": lambda x: x + torch.ones(x.shape[-1]),
    }

    def applied(self: Any, segment: Any, x: Any) -> Any:
        out = apply(self, segment, x)
        if fault in added:
            added[fault](out)
        return out

    def whole(*arguments: Any, **options: Any) -> Any:
        return chunked(*arguments, **options, chunk=1 << 30)

    loss_of = whole if fault == "kept logits" else chunked
    with mock.patch.object(StageModule, "apply_segment", applied), mock.patch.object(engine, "chunked_loss", loss_of):
        it = Rehearsal(load_run("125m"), 3, card, device)
        try:
            it.hop(0, "graphs")
        except Exception as error:  # noqa: BLE001 - the fake tensors' own
            it.found["error"] = f"{type(error).__name__}: {error}"
        yield it.found


def main(guard: str, card_name: str, fault: str = "") -> None:
    load_guard(Path(guard))
    card = CARDS[card_name]
    with (
        pretended(card) as device,
        mock.patch("swarmd.stage.state.safetensors", Shelf()),
        mock.patch("swarmd.stage.gradients.bytes_digest", return_value="zeros"),
    ):
        for found in fail(fault, card, device) if fault else rehearse(card, device):
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
