"""The events of a world: the last ones for people, and a hash over all of them to compare runs with.

Off by default: a trace costs about as much as the network itself. Knows plain values only.
"""

import hashlib
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from swarmd.values import PeerId

EVENTS_KEPT = 50_000  # about 10 MB, and some minutes of a small swarm
HASHED_AT_ONCE = 512


class Event(NamedTuple):
    """One thing that happened."""

    time: float  # virtual seconds
    peer: PeerId  # "" for the world
    other: PeerId  # another peer that it concerns; "" for none
    what: str  # the kind of a message, a task of the device, or a fault
    step: int  # -1: of no step
    index: int  # type: ignore[assignment]  # -1: of no microbatch; a tuple's own method is of no use here
    detail: str

    def line(self) -> str:
        """The event as a person reads it."""
        who = f"{self.peer} -> {self.other}" if self.other else self.peer or "the world"
        where = "" if self.step < 0 else f" ({self.step})" if self.index < 0 else f" ({self.step}, {self.index})"
        return f"{self.time:.3f} s  {who}  {self.what}{where}{' ' if self.detail else ''}{self.detail}"


class Trace:
    """The events of one world, if `on`."""

    def __init__(self, on: bool = False, *, kept: int = EVENTS_KEPT) -> None:
        self.on = on
        self.events: deque[Event] = deque(maxlen=kept)
        self.count = 0
        self._unhashed: list[Event] = []
        self._hash = hashlib.blake2b(digest_size=16)

    def add(
        self,
        time: float,
        peer: PeerId,
        what: str,
        other: PeerId = "",
        step: int = -1,
        index: int = -1,
        detail: str = "",
    ) -> None:
        """Remembers an event. Callers look at `on` first where it matters."""
        if not self.on:
            return
        event = Event(time, peer, other, what, step, index, detail)
        self.count += 1
        self.events.append(event)
        self._unhashed.append(event)
        if len(self._unhashed) >= HASHED_AT_ONCE:
            self._digest()

    def _digest(self) -> None:
        if self._unhashed:
            self._hash.update("\n".join(map(repr, map(tuple, self._unhashed))).encode())
            self._hash.update(b"\n")
            self._unhashed.clear()

    @property
    def hash(self) -> str:
        """Names everything that happened so far, also what is not kept any more."""
        self._digest()
        return self._hash.copy().hexdigest()

    def last(
        self, *, step: int | None = None, index: int | None = None, peer: PeerId | None = None, count: int = 40
    ) -> list[Event]:
        """The newest events of a step, a microbatch, a peer, oldest first."""
        found = []
        for event in reversed(self.events):
            if (
                (step is None or event.step == step)
                and (index is None or event.index == index)
                and (peer is None or peer in (event.peer, event.other))
            ):
                found.append(event)
                if len(found) == count:
                    break
        return found[::-1]

    def transcript(self, events: Iterable[Event] | None = None) -> str:
        """Readable lines, of everything that is kept or of some events."""
        return "\n".join(event.line() for event in (self.events if events is None else events))
