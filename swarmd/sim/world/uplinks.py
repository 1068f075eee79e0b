"""The time that a frame is on its way: a node's uplink and downlink, shared by all its connections.

Plain arithmetic on the time it is given; the network (`network.py`) sets the timers. An uplink sends the most urgent
first: words before activations before averaging and state, and a word that comes while something bulky is being sent
goes at once (the transport sends in chunks). So an urgent frame moves the ends of those it overtakes.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from swarmd.sim.world.machine import Machine
from swarmd.values import PeerId, Urgency

HEADER_BYTES = 200  # of a frame besides its buffers
ROUNDING_SECONDS = 1e-9  # a word that leaves and comes in at the same rate takes no longer to come in than to leave
LANES: dict[Urgency, int] = {"control": 0, "hop": 1, "bulk": 2}


class Node(Protocol):
    """One machine on the network."""

    alive: bool
    machine: Machine
    uplink: "Uplink"
    downlink: "Downlink"

    @property
    def peer_id(self) -> PeerId: ...


class Flight:
    """One frame between two nodes."""

    __slots__ = (
        "args",
        "connection",
        "delay",
        "deliver",
        "end",
        "lane",
        "lost",
        "nbytes",
        "seconds",
        "source",
        "target",
    )

    def __init__(
        self, source: Node, target: Node, nbytes: int, lane: int, deliver: Callable[..., None], args: tuple[Any, ...]
    ) -> None:
        self.source, self.target = source, target
        self.nbytes, self.lane, self.deliver, self.args = nbytes, lane, deliver, args
        self.connection: object = None  # the frame is lost with it
        self.lost = False
        self.seconds = 0.0  # that its bytes take to leave
        self.end = 0.0  # when its last byte leaves
        self.delay = 0.0  # seconds from one end to the other


class Uplink:
    """The way out of a node, the most urgent frames first."""

    __slots__ = ("_lanes", "rate")

    def __init__(self, rate: float) -> None:
        assert rate > 0, "a node that can send nothing is a blocked one"
        self.rate = rate  # bytes per second
        self._lanes: tuple[deque[Flight], ...] = (deque(), deque(), deque())

    def admit(self, flight: Flight, now: float) -> None:
        """Sets when a frame leaves, and moves those it overtakes."""
        seconds = flight.nbytes / self.rate
        start = now
        for rank, lane in enumerate(self._lanes):
            while lane and lane[0].end <= now:
                lane.popleft()
            if not lane:
                continue
            if rank <= flight.lane:
                start = max(start, lane[-1].end)
            else:
                for other in lane:
                    other.end += seconds
        flight.seconds, flight.end = seconds, start + seconds
        self._lanes[flight.lane].append(flight)

    def lose(self, now: float) -> None:
        """Loses the frames that have not left: the node is gone."""
        for lane in self._lanes:
            for flight in lane:
                flight.lost |= flight.end > now
            lane.clear()


class Downlink:
    """The way into a node, first come, first served; words don't wait."""

    __slots__ = ("_free", "rate")

    def __init__(self, rate: float) -> None:
        assert rate > 0, "a node that can receive nothing is a blocked one"
        self.rate = rate
        self._free = 0.0

    def admit(self, flight: Flight, now: float) -> float:
        """The time at which the last byte of a frame is in, whose last byte has come to this end by now."""
        seconds = flight.nbytes / self.rate
        first_byte = flight.end - flight.seconds + flight.delay
        if flight.lane == 0:
            if self._free > now:
                self._free += seconds
            last_byte = first_byte + seconds
            return last_byte if last_byte > now + ROUNDING_SECONDS else now
        self._free = max(now, max(self._free, first_byte) + seconds)
        return self._free
