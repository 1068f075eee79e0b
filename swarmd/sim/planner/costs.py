"""The costs of a stage on a device: operations, seconds, bytes on the wire, memory.

Arithmetic on a run's settings, with the model's formulas (`stage/model.py`) and a device's figures (`devices.py`);
tests hold it to the real model's. Knows no peers and no time.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from swarmd.config import RunConfig
from swarmd.errors import ConfigError
from swarmd.sim.engines.phantom import BYTES_PER_ELEMENT
from swarmd.sim.planner.devices import LAUNCH_SECONDS, Device, Point
from swarmd.sim.world.device import Speed
from swarmd.sizes import (
    CONTEXT_BYTES,
    FP32,
    HALF,
    application_bytes,
    block_parameters,
    graph_bytes,
    needed_bytes,
    resident_bytes,
    stage_parameters,
)
from swarmd.swarm.rounds.parts import PART_ELEMENTS

BACKWARD_TIMES = 2  # a backward's matrix products are twice a forward's
KERNELS = 60  # that PyTorch starts for one block's forward; twice as many for its backward: counted roughly
MOVES = 2  # each tensor of a block is written once and read once
WEIGHT_BYTES = (6, 28)  # moved per parameter and forward, and backward: casts, finite check, addition to the sum
ROUND_BYTES = {"contribution": 6, "reduce": 10, "assemble": 14, "apply": 40}  # of the device's memory, per element
LOGIT_BYTES = 10  # per token and word: logits in bf16 and fp32, their gradient
WIRE_SECONDS_PER_BYTE = 5e-9
"""Seconds of a core, for encrypting and framing at either end: 200 MB/s between two processes (docs/planning.md). GPUs'
hosts have cores to spare; on a profiled CPU it is charged to the device.
"""
HOP_SECONDS = 1e-3  # of a core, for the messages of a hop at either end: likewise
JITTER = 0.05  # durations vary by up to so much: an assumption, and identical devices would move in step


@dataclass(frozen=True)
class WireFormat:
    """The form in which activations and their gradients travel."""

    name: str
    codec: str  # as the run names it
    bytes_per_element: float
    factor: int = 1  # so many times narrower is the boundary
    learned: bool = False  # with a matrix before and after it (bottleneck), not after it only (maxout)
    exists: bool = True  # swarmd has it; else only its sizes are planned with

    def elements(self, run: RunConfig) -> int:
        return run.tokens_per_microbatch * run.model.hidden // self.factor

    def nbytes(self, run: RunConfig) -> int:
        """Bytes of an activation, and of a gradient."""
        return round(self.bytes_per_element * self.elements(run))

    def flops(self, run: RunConfig) -> float:
        """Forward operations per boundary, both ends together."""
        if self.factor == 1:
            return 0.0
        matrices = 2 if self.learned else 1
        return matrices * 2.0 * run.tokens_per_microbatch * run.model.hidden**2 / self.factor


def find_wire(name: str) -> WireFormat:
    """fp32, fp16, bf16, int8, int8-bnb, 4-bit, bottleneck-C, maxout-C (C times narrower, int8). Raises ConfigError."""
    if name in BYTES_PER_ELEMENT:
        return WireFormat(name, "int8" if name == "int8-bnb" else name, BYTES_PER_ELEMENT[name])
    if name == "4-bit":
        return WireFormat(name, "int8", BYTES_PER_ELEMENT["int8"] - 0.5, exists=False)
    kind, _, factor = name.partition("-")
    if kind in ("bottleneck", "maxout") and factor.isdecimal() and int(factor) > 1:
        learned = kind == "bottleneck"
        return WireFormat(name, "int8", BYTES_PER_ELEMENT["int8"], int(factor), learned, exists=False)
    known = ", ".join((*BYTES_PER_ELEMENT, "4-bit", "bottleneck-2", "maxout-2"))
    raise ConfigError(f"--wire {name} is not known; choose one of {known}.")


# ------------------------------------------------------------------------------------------------- the model


def block_flops(run: RunConfig) -> float:
    """Operations of a block's forward over a microbatch: products, and causal attention with half its scores."""
    model = run.model
    products = 2.0 * run.tokens_per_microbatch * block_parameters(model)
    return products + 2.0 * run.tokens_per_microbatch * model.sequence_length * model.hidden


def stage_flops(run: RunConfig, stage: int) -> float:
    """Operations of a stage's forward over a microbatch."""
    flops = run.model.layers // run.model.stages * block_flops(run)
    return flops + (unembedding_flops(run) if stage == run.model.stages - 1 else 0.0)


def unembedding_flops(run: RunConfig) -> float:
    """Operations of the tail's unembedding, forward, over a microbatch."""
    return 2.0 * run.tokens_per_microbatch * run.model.hidden * run.model.vocabulary


def token_flops(run: RunConfig) -> float:
    """Forward and backward of the whole model, per token."""
    forward = run.model.layers * block_flops(run) + unembedding_flops(run)
    return (1 + BACKWARD_TIMES) * forward / run.tokens_per_microbatch


def width_of(dtype: str) -> int:
    """Bytes of an element."""
    return FP32 if dtype == "fp32" else HALF


# ------------------------------------------------------------------------------------------------- seconds


@dataclass(frozen=True)
class StageSpeed:
    """Seconds that a device takes for a microbatch in a stage."""

    forward_s: float
    backward_s: float  # with `recompute` share of a forward in it
    recompute: float  # share of the microbatches whose forward runs again
    rounds: dict[str, float]

    @property
    def total_s(self) -> float:
        return self.forward_s + self.backward_s

    def at(self, pace: float) -> "StageSpeed":
        """The same device, so many times as fast."""
        rounds = {method: seconds / pace for method, seconds in self.rounds.items()}
        return StageSpeed(self.forward_s / pace, self.backward_s / pace, self.recompute, rounds)

    def speed(self) -> Speed:
        """The same for a simulated device."""
        return Speed(self.forward_s, self.backward_s, 0.0, JITTER, self.rounds)


def stage_speed(
    run: RunConfig, stage: int, device: Device, dtype: str, wire: WireFormat, *, pace: float, held: float, replicas: int
) -> StageSpeed:
    """The speed of a device in a stage. `held`: microbatches between forward and backward there; `replicas`: of the
    stage.
    """
    forward, backward = _measured(run, stage, device) if device.points else _stated(run, stage, device, dtype)
    boundaries = (stage > 0) + (stage < run.model.stages - 1)
    if device.points:
        per_boundary = HOP_SECONDS + 2 * WIRE_SECONDS_PER_BYTE * wire.nbytes(run)  # a tensor each way
        forward += boundaries * per_boundary / 2
        backward += boundaries * per_boundary / 2
    else:
        products = boundaries * wire.flops(run) / 2 / device.matmul_flops(dtype)
        forward, backward = forward + products, backward + BACKWARD_TIMES * products
    again = recompute_share(run, stage, device, dtype, held)
    parameters = stage_parameters(run.model, stage)
    part = min(PART_ELEMENTS, -(-parameters // replicas))
    rounds = {}
    for method, nbytes in ROUND_BYTES.items():
        elements = {"contribution": part, "reduce": part * replicas}.get(method, parameters)
        rounds[method] = elements * (device.round_s[method] if device.points else nbytes / device.bandwidth) / pace
    return StageSpeed(forward / pace, (backward + again * forward) / pace, again, rounds)


def recompute_share(run: RunConfig, stage: int, device: Device, dtype: str, held: float) -> float:
    """Share of a stage's microbatches whose forward runs twice because their graph is not kept. The tail's backward
    follows its forward at once, so that one graph is enough there.
    """
    tail = stage == run.model.stages - 1
    if run.recompute != "auto":
        return 0.0 if tail else float(run.recompute)
    if device.cores:
        return 0.0  # a host's memory holds many graphs of what its cores can compute
    free = device.memory_bytes - CONTEXT_BYTES - resident_bytes(run, stage)
    kept = max(0.0, free) * 0.5 // graph_bytes(run, width_of(dtype))  # half of it, as `stage/graphs.py` plans
    return max(0.0, 1.0 - kept / (1.0 if tail else max(held, 1.0)))


def _stated(run: RunConfig, stage: int, device: Device, dtype: str) -> tuple[float, float]:
    """Forward and backward from a datasheet's figures: matrix products at the rate that devices reach, the rest at the
    memory's.
    """
    model, blocks = run.model, run.model.layers // run.model.stages
    products = stage_flops(run, stage) / device.matmul_flops(dtype)
    moved = MOVES * blocks * application_bytes(run, width_of(dtype)) / device.bandwidth
    started = blocks * KERNELS * LAUNCH_SECONDS
    weights = stage_parameters(model, stage) / device.bandwidth
    forward = products + max(moved, started) + WEIGHT_BYTES[0] * weights
    backward = BACKWARD_TIMES * (products + max(moved, started)) + WEIGHT_BYTES[1] * weights
    if stage == model.stages - 1:
        backward += LOGIT_BYTES * run.tokens_per_microbatch * model.vocabulary / device.bandwidth
    return forward, backward


def _measured(run: RunConfig, stage: int, device: Device) -> tuple[float, float]:
    """Forward and backward from a profile, between the widths that it measured on a line in log(width)."""
    model, blocks = run.model, run.model.layers // run.model.stages
    flops, elements = block_flops(run), run.tokens_per_microbatch * model.hidden
    forward = blocks * flops * _between(device.points, model.hidden, lambda it: it.forward_s / it.forward_flops)
    backward = blocks * flops * _between(device.points, model.hidden, lambda it: it.backward_s / it.forward_flops)
    forward += elements * _between(device.points, model.hidden, lambda it: it.forward_fixed_s / it.tokens / it.hidden)
    backward += elements * _between(device.points, model.hidden, lambda it: it.backward_fixed_s / it.tokens / it.hidden)
    if stage == model.stages - 1:
        rate = _between(device.points, model.hidden, lambda it: (it.forward_s + it.backward_s) / it.forward_flops)
        words = run.tokens_per_microbatch * model.vocabulary
        backward += unembedding_flops(run) * rate + words * _between(device.points, model.hidden, lambda it: it.logit_s)
    return forward, backward


def _between(points: tuple[Point, ...], hidden: int, of: Callable[[Point], float]) -> float:
    """A measured figure at a width; beyond the measured ones it is that of the nearest."""
    below = [point for point in points if point.hidden <= hidden]
    above = [point for point in points if point.hidden >= hidden]
    if not below or not above:
        return of(points[0] if not below else points[-1])
    left, right = below[-1], above[0]
    if left.hidden == right.hidden:
        return of(left)
    share = math.log(hidden / left.hidden) / math.log(right.hidden / left.hidden)
    return of(left) * (1 - share) + of(right) * share


# ------------------------------------------------------------------------------------------------- memory


def memory_bytes(run: RunConfig, stage: int, device: Device, dtype: str) -> float:
    """The least that a stage needs of a device, on which a GPU's driver takes some, too."""
    return needed_bytes(run, stage, width_of(dtype)) + (0.0 if device.cores else CONTEXT_BYTES)
