"""Forwards of a stage's hops, each kept until its gradient comes, and the hops that are forgotten meanwhile.

Decides how much of a forward is kept: its graphs, the inputs of its blocks, or the bytes that it came from. One thread
computes; `attempt` and `forget` are called from others. Work on a hop is held to the attempt with which it began: once
the hop is forgotten it raises `HopForgotten`. Shapes: B sequences, T tokens, D hidden width.
"""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import psutil
import torch

from swarmd.config import ModelConfig, RunConfig
from swarmd.errors import HopForgotten
from swarmd.stage.inputs import Source
from swarmd.stage.passage import Passage
from swarmd.values import HopId

GRAPH_SHARE_CPU = 0.25  # of the memory available at the start: several daemons may share a machine
GRAPH_SHARE_CUDA = 0.5  # of the memory free at the start; the rest: temporaries, a recomputed graph, fragmentation


Kind = Literal["graphs", "inputs", "source"]
"""Ways to keep a forward: with all its graphs, with the inputs of its segments, or as the bytes that it came from."""


@dataclass(frozen=True)
class Forward:
    """A forward that waits for its gradient."""

    kept: Passage | Source
    shape: torch.Size  # of the output
    nbytes: int = 0  # of the device's memory, as planned


class Graphs:
    """The forwards of one stage's step under way."""

    def __init__(self, limit: int) -> None:
        self.limit = limit  # bytes of the device's memory that may be kept
        self._version = 0
        self._lock = threading.Lock()  # over all of the below and the version
        self._kept: dict[HopId, Forward] = {}
        self._forgets: dict[HopId, int] = {}
        self._nbytes = 0  # of those kept

    def attempt(self, hop: HopId) -> int:
        """The number of times that the hop was forgotten. Work queued with this number is void once it has changed."""
        with self._lock:
            return self._forgets.get(hop, 0)

    def forget(self, hop: HopId) -> None:
        """Drops the hop's forward, and voids all work on it that runs or waits."""
        with self._lock:
            if hop.step > self._version:
                self._forgets[hop] = self._forgets.get(hop, 0) + 1
            self._drop(hop)

    def begin(self, hop: HopId, attempt: int | None) -> int:
        """Refuses hops of other steps than the one under way; the attempt to hold the work to."""
        with self._lock:
            if hop.step <= self._version:
                raise HopForgotten(f"step {hop.step} has ended; this stage is at version {self._version}")
            if hop.step != self._version + 1:
                raise KeyError(f"hop {tuple(hop)} is for a later step than {self._version + 1}")
            if attempt is None:
                return self._forgets.get(hop, 0)
            self._check(hop, attempt)
            return attempt

    @contextlib.contextmanager
    def unforgotten(self, hop: HopId, attempt: int) -> Iterator[None]:
        """Lets nothing forget the hop while the block runs. Raises HopForgotten if that was done before."""
        with self._lock:
            self._check(hop, attempt)
            yield

    @property
    def room(self) -> int:
        """Bytes that may still be kept."""
        return self.limit - self._nbytes

    def keep(self, hop: HopId, attempt: int, forward: Forward) -> None:
        """Keeps a forward, in place of one that the hop has already."""
        with self._lock:
            self._check(hop, attempt)
            self._drop(hop)
            self._kept[hop] = forward
            self._nbytes += forward.nbytes

    def shape(self, hop: HopId) -> torch.Size:
        """The shape of the hop's output. Raises HopForgotten, KeyError."""
        with self._lock:
            if hop not in self._kept:
                if hop in self._forgets:
                    raise HopForgotten(f"hop {tuple(hop)} was forgotten before its gradient came")
                raise KeyError(f"no forward of hop {tuple(hop)} ran here")
            return self._kept[hop].shape

    def take(self, hop: HopId, attempt: int) -> Forward:
        """Gives a hop's forward away."""
        with self._lock:
            self._check(hop, attempt)
            forward = self._kept[hop]
            self._drop(hop)
            return forward

    def hops(self) -> set[HopId]:
        """The hops whose forwards are kept."""
        with self._lock:
            return set(self._kept)

    def clear(self) -> None:
        """Drops everything: another state takes the place of the one that it is of."""
        with self._lock:
            for hop in list(self._kept):
                self._drop(hop)

    def end(self, version: int) -> None:
        """Drops what is left of the steps up to a version, at which the stage is now."""
        with self._lock:
            self._version = version
            for hop in [hop for hop in self._kept if hop.step <= version]:
                self._drop(hop)
            self._forgets = {hop: count for hop, count in self._forgets.items() if hop.step > version}

    def _check(self, hop: HopId, attempt: int) -> None:
        """With the lock held."""
        if self._forgets.get(hop, 0) != attempt:
            raise HopForgotten(f"hop {tuple(hop)} was forgotten while it was worked on")

    def _drop(self, hop: HopId) -> None:
        """With the lock held."""
        forward = self._kept.pop(hop, None)
        self._nbytes -= forward.nbytes if forward else 0


@dataclass(frozen=True)
class Keeping:
    """The setting `recompute` of a run, and the bytes that a forward takes which is kept in one way or the other."""

    recompute: bool | Literal["auto", "block"]
    graphs: int  # bytes of all its graphs
    inputs: int  # ... of its segments' inputs

    def plan(self, room: int) -> tuple[Kind, int]:
        """The way to keep a forward for which there is room for so many bytes, and the bytes that it takes."""
        if self.recompute is False or (self.recompute == "auto" and self.graphs <= room):
            return "graphs", self.graphs
        if self.recompute is not True and self.inputs <= room:
            return "inputs", self.inputs
        return "source", 0

    def whole(self, limit: int) -> bool:
        """True if all graphs of a forward may be there while its backward runs, in a device that keeps so many bytes;
        else one segment's graph at a time.
        """
        return self.graphs <= limit if self.recompute == "auto" else self.recompute != "block"


def plan_keeping(run: RunConfig) -> Keeping:
    """The keeping of a run's microbatches."""
    return Keeping(
        run.recompute,
        graph_bytes(run.model, run.tokens_per_microbatch),
        input_bytes(run.model, run.tokens_per_microbatch),
    )


def plan_limit(device: torch.device) -> int:
    """Bytes of a device's memory that kept forwards may take."""
    if device.type == "cuda":
        return int(GRAPH_SHARE_CUDA * torch.cuda.mem_get_info(device)[0])
    return int(GRAPH_SHARE_CPU * psutil.virtual_memory().available)


def graph_bytes(model: ModelConfig, tokens: int) -> int:
    """Bytes of a kept graph, roughly: a block application has about 14 tensors of the hidden width, 4 of the inner."""
    width = 2 if model.compute_dtype == "bf16" else 4
    return model.layers // model.stages * tokens * (14 * model.hidden + 4 * model.ffn) * width


def input_bytes(model: ModelConfig, tokens: int) -> int:
    """Bytes of the inputs of a stage's blocks: the residual stream, fp32, before each."""
    return model.layers // model.stages * tokens * model.hidden * 4
