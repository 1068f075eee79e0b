"""Plain values that pass between the rooms: what a stage hands to the swarm, and what the swarm hands to the network.

Like `config`, `errors` and `status` this file may be imported from everywhere and imports none of them.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

PeerId = str
"""A libp2p peer id in base58."""

Buffer = bytes | bytearray | memoryview
"""Contiguous bytes that travel without being copied through a header."""


class HopId(NamedTuple):
    """Identity of a microbatch, and of every hop it makes: the optimizer step and its index 0 .. M-1 in that step."""

    step: int
    index: int  # type: ignore[assignment]  # a tuple's own method of that name is of no use here


@dataclass(frozen=True)
class Encoded:
    """A tensor as it travels. Only a codec looks inside; `swarm/` passes it on and keeps it."""

    codec: str  # fp32 | fp16 | bf16 | int8 | int8-bnb
    shape: tuple[int, ...]
    data: tuple[Buffer, ...]  # e.g. codes and block scales

    @property
    def nbytes(self) -> int:
        return sum(memoryview(part).nbytes for part in self.data)


@dataclass(frozen=True)
class BackwardResult:
    """The result of a backward: the gradient of the stage's input (None at the head), and whether its hop counts."""

    gradient: Encoded | None
    accumulated: bool  # the hop is in the step's sum now; a frozen sum stays as it was, but the gradient is right


@dataclass(frozen=True)
class TailResult:
    """Forward, loss and backward of the last stage in one go."""

    loss_sum: float  # nats, summed over target tokens
    tokens: int
    gradient: Encoded | None  # None for `evaluate` hops and when the tail is also the head
    accumulated: bool


@dataclass(frozen=True)
class GradientSummary:
    """A stage's averaged gradient, named and measured."""

    digest: str
    squared_norm: float  # fp64 sum over the stage; not finite when the gradient isn't


@dataclass(frozen=True)
class ComputeProgress:
    """The compute thread's pulse, so that a hung device with a lively event loop is seen."""

    counter: int  # grows with every finished task
    running: HopId | None
    busy_seconds: float  # of the task that runs now
    forward_seconds: float  # moving average of one forward; 0 until measured
    backward_seconds: float
    lost: str = ""  # why it will never compute again, a sentence; "" while it may
    dtype: str = ""  # of the products: fp32, bf16 or fp16
    hops: int = 0  # forwards, backwards and tails that were computed
    repeats: int = 0  # of them, computed again since their numbers weren't finite in that dtype


Urgency = Literal["control", "hop", "bulk"]
"""Order on the wire: words before activations before averaging and state."""


@dataclass(frozen=True)
class Frame:
    """One message as the network sees it: a kind, a body of msgpack's own types, and payload buffers beside it."""

    kind: str
    body: dict[str, Any]
    buffers: tuple[Buffer, ...] = field(default=())

    @property
    def nbytes(self) -> int:
        """Payload bytes; the body is small."""
        return sum(memoryview(part).nbytes for part in self.buffers)


class Size(NamedTuple):
    """The size of a message on the wire, in bytes."""

    header: int  # kind and body, as msgpack
    payload: int  # all buffers


def short(peer: PeerId) -> str:
    """The end of a peer id, enough for people to tell peers apart. (All ids begin alike.)"""
    return peer[-8:]


def host_of(machine: str) -> str:
    """The machine in a card's `machine`, whatever network of it the peer is on; "" when it isn't known."""
    return machine.partition("/")[0]


def network_of(machine: str) -> str:
    """The network in a card's `machine`: peers that name the same share the loopback; "" when it isn't known."""
    return machine.partition("/")[2]
