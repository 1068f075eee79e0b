"""Faults at logical places: "when the leader is about to send its Plan of step 3, crash".

Everything that a peer awaits goes through its ports, so the places are: each kind of request at its asker (about to be
sent, just answered) and at its answerer (arrived, handled but not yet answered), each method of Compute before and
after, and the disk. `GROUPS` is the one list of them all.
"""

import contextvars
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol

from swarmd.swarm.history.record_codec import UNREADABLE
from swarmd.swarm.history.record_format import read_record
from swarmd.swarm.wire.framing import KINDS
from swarmd.swarm.wire.messages import commit, disks, drain, hop, move, presence, state, step
from swarmd.swarm.wire.messages import round as round_messages
from swarmd.swarm.wire.messages.common import Request
from swarmd.values import Frame, PeerId

ANYONE: PeerId = "*"


@dataclass(frozen=True)
class Group:
    """The points of one part of the protocol."""

    messages: ModuleType
    methods: tuple[str, ...] = ()  # of Compute
    disk: tuple[str, ...] = ()

    def requests(self) -> list[str]:
        """The kinds of requests among its messages, in the order of their file: seeds draw from it."""
        name = self.messages.__name__
        return [it for it, cls in KINDS.items() if cls.__module__ == name and issubclass(cls, Request)]

    def points(self) -> tuple[str, ...]:
        """The names of its points."""
        sides = ("ask", "serve", "served", "asked")
        asked = [f"{side}.{kind}" for kind in self.requests() for side in sides]
        return (*asked, *(f"{edge}.{method}" for method in self.methods for edge in ("begin", "end")), *self.disk)


GROUPS: dict[str, Group] = {
    "meeting": Group(presence),
    "lease": Group(step),
    "move": Group(move),
    "drain": Group(drain, ("absorb",)),
    "journey": Group(hop, ("forward", "backward", "tail")),
    "round": Group(round_messages, ("freeze", "thaw", "contribution", "reduce", "assemble")),
    "commit": Group(commit, ("apply", "skip"), ("ledger", "void")),
    "state transfer": Group(state, ("export_state", "import_state"), ("save",)),
    "disks": Group(disks, disk=("tail", "list_checkpoints", "load", "read")),
}
"""Every point there is, by the part of the protocol it belongs to.

`ledger` and `void` come before the disk changes, `save` before a checkpoint is written; `tail` before
the ledger is read, `list_checkpoints`, `load` and `read` before checkpoints are looked at, loaded, or read in part.
"""


def all_points() -> tuple[str, ...]:
    """Every point, in the order of the list."""
    return tuple(point for group in GROUPS.values() for point in group.points())


_KNOWN = frozenset(all_points())


class Drop:
    """The type of DROP."""


DROP = Drop()
"""Returned by a fault at a point of a frame, so that the frame is lost."""


@dataclass(eq=False)
class Planned:
    """A fault that waits for its moment. It happens once; others planned for the same moment happen, too."""

    peer: PeerId  # or ANYONE
    step: int | None  # None: any
    point: str
    strike: Callable[[PeerId], object]  # is given the peer that came to the point; may return DROP
    skip: int = 0  # so many times the point is passed first

    def concerns(self, peer: PeerId, step: int, point: str) -> bool:
        return self.point == point and self.peer in (peer, ANYONE) and self.step in (step, None)


class Passer(Protocol):
    """A machine that comes to a point."""

    @property
    def name(self) -> PeerId: ...

    @property
    def alive(self) -> bool: ...


class Points:
    """The faults planned in one world."""

    def __init__(self) -> None:
        self.armed: list[Planned] = []  # read before every `Machine.at`, so that worlds without faults pay nothing
        self.fired: list[tuple[PeerId, int, str]] = []

    def fail_at(
        self, peer: PeerId, step: int | None, point: str, strike: Callable[[PeerId], object], *, skip: int = 0
    ) -> None:
        """Plans a fault."""
        assert point in _KNOWN, f"{point} is none of the points in swarmd/sim/world/points.py"
        self.armed.append(Planned(peer, step, point, strike, skip))

    def reached(self, machine: Passer, point: str, step: int) -> bool:
        """Strikes a machine that is at a point with the faults planned for it. True if the frame is to be dropped."""
        assert point in _KNOWN, f"{point} is not in the list of swarmd/sim/world/points.py"
        drop = False
        for planned in list(self.armed):
            if not planned.concerns(machine.name, step, point):
                continue
            if planned not in self.armed or not machine.alive:
                continue  # the one before it had called it off
            if planned.skip:
                planned.skip -= 1
                continue
            self.armed.remove(planned)
            self.fired.append((machine.name, step, point))
            # What the fault starts belongs to the world and not to the machine it befalls.
            drop |= contextvars.Context().run(planned.strike, machine.name) is DROP
        return drop


def step_of(frame: Frame) -> int | None:
    """The step that a frame is about, if it says so."""
    step = frame.body.get("step")
    if step is None and "record" in frame.body and frame.buffers:
        try:
            step = read_record(frame.buffers[0]).get("step")
        except UNREADABLE:
            return None
    return step if type(step) is int else None
