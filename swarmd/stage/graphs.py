"""Graphs of a stage's forwards, each kept until its gradient comes, and the hops that are forgotten meanwhile.

One thread computes; `attempt` and `forget` are called from others. Work on a hop is held to the attempt with which it
began: once the hop is forgotten it raises `HopForgotten`. Shapes: B sequences, T tokens, D hidden width.
"""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor, nn

from swarmd.config import ModelConfig, RunConfig
from swarmd.errors import HopForgotten
from swarmd.values import HopId

GRAPH_SHARE_CPU = 0.25  # of the memory available at the start: several daemons may share a machine
GRAPH_SHARE_CUDA = 0.5  # of the memory free at the start; the rest: temporaries, a recomputed graph, fragmentation


@dataclass(frozen=True)
class ForwardGraph:
    """A forward's graph, or its input to compute it again, kept for its backward."""

    input: Tensor  # a leaf, [B, T] tokens or [B, T, D] activation
    output: Tensor | None  # [B, T, D] with its graph; None: the forward runs again
    parameters: tuple[nn.Parameter, ...]  # those the graph was built on
    shape: torch.Size  # of the output


class Graphs:
    """The graphs of one stage's step under way."""

    def __init__(self, limit: int) -> None:
        self.limit = limit  # of graphs, beyond which forwards run again
        self._version = 0
        self._lock = threading.Lock()  # over all of the below and the version
        self._kept: dict[HopId, ForwardGraph] = {}
        self._forgets: dict[HopId, int] = {}
        self._count = 0  # of those with an output

    def attempt(self, hop: HopId) -> int:
        """The number of times that the hop was forgotten. Work queued with this number is void once it has changed."""
        with self._lock:
            return self._forgets.get(hop, 0)

    def forget(self, hop: HopId) -> None:
        """Drops the hop's graph, and voids all work on it that runs or waits."""
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

    def has_room(self) -> bool:
        """True if another graph may be kept."""
        return self._count < self.limit

    def keep(self, hop: HopId, attempt: int, graph: ForwardGraph) -> None:
        """Keeps a graph, in place of one that the hop has already."""
        with self._lock:
            self._check(hop, attempt)
            self._drop(hop)
            self._kept[hop] = graph
            self._count += graph.output is not None

    def shape(self, hop: HopId) -> torch.Size:
        """The shape of the hop's output. Raises HopForgotten, KeyError."""
        with self._lock:
            if hop not in self._kept:
                if hop in self._forgets:
                    raise HopForgotten(f"hop {tuple(hop)} was forgotten before its gradient came")
                raise KeyError(f"no forward of hop {tuple(hop)} ran here")
            return self._kept[hop].shape

    def take(self, hop: HopId, attempt: int) -> ForwardGraph:
        """Gives a hop's graph away."""
        with self._lock:
            self._check(hop, attempt)
            graph = self._kept[hop]
            self._drop(hop)
            return graph

    def hops(self) -> set[HopId]:
        """The hops whose graphs are kept."""
        with self._lock:
            return set(self._kept)

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
        graph = self._kept.pop(hop, None)
        self._count -= graph is not None and graph.output is not None


def plan_limit(run: RunConfig, device: torch.device) -> int:
    """The number of graphs that may be kept at once in a device's memory."""
    if device.type == "cuda":
        budget = GRAPH_SHARE_CUDA * torch.cuda.mem_get_info(device)[0]
    else:
        budget = GRAPH_SHARE_CPU * psutil.virtual_memory().available
    return int(budget // graph_bytes(run.model, run.tokens_per_microbatch))


def graph_bytes(model: ModelConfig, tokens: int) -> int:
    """Bytes of a kept graph, roughly: a block application has about 14 tensors of the hidden width, 4 of the inner."""
    width = 2 if model.compute_dtype == "bf16" else 4
    return model.layers // model.stages * tokens * (14 * model.hidden + 4 * model.ffn) * width
