"""An in-memory network behind the Transport port: delays, bandwidth, losses, walls, machines that die.

Deterministic in virtual time; chance comes from one generator. A frame leaves by its node's uplink, is on its way for
the link's delay, and enters by the other node's downlink (`uplinks.py`); then the receiving machine hears of it. Where
nothing gets through (a partition, a block, a clog, a machine without power) frames are held and nobody is told: the
connection breaks when something has been stuck for long, and what was held goes on when the way is open again.

Connections are in `connection.py`, each machine's access to the network in `transport.py`.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from swarmd.sim.world.connection import Connection, Dial
from swarmd.sim.world.damage import damaged
from swarmd.sim.world.machine import WORLD, Machine
from swarmd.sim.world.trace import Trace
from swarmd.sim.world.transport import Counts, SimTransport
from swarmd.sim.world.uplinks import HEADER_BYTES, Downlink, Flight, Node, Uplink
from swarmd.values import Frame, PeerId

BREAK_SECONDS = 924.6
"""Until a connection on which something is stuck breaks. `swarmd/net` sets no timeout on its sockets, and its muxer
takes no notice of pings that aren't answered, so it is the kernel that gives up, after 15 retransmissions
(`tcp_retries2` in tcp(7)). The muxer's pings see to it that something is always under way, at both ends.
"""
DIAL_SECONDS = 10.0  # `dial_s` of swarmd/net/limits.py: until an address that doesn't answer counts as unreachable
RETRANSMIT_SECONDS = 0.2  # Linux's least; it doubles with each loss of the same frame
RETRANSMIT_CEILING_SECONDS = 120.0


@dataclass(frozen=True)
class LinkSpec:
    """The network between two peers."""

    delay_s: float = 0.002  # one way
    bytes_per_second: float = 100e6  # of the uplink and the downlink of peers that name no others
    jitter_s: float = 0.0  # up to so much is added to the delay of each frame, so that frames overtake each other
    loss: float = 0.0  # of frames; those of requests come again, those of gossip don't

    def __post_init__(self) -> None:
        assert 0 <= self.loss < 1, "a link that loses everything is a blocked one"


class SimNetwork:
    """All transports of a world, and the ways between them."""

    def __init__(
        self,
        link: LinkSpec | None = None,
        *,
        rng: random.Random | None = None,
        trace: Trace | None = None,
        break_seconds: float = BREAK_SECONDS,
        failed: Callable[[PeerId, BaseException], None] | None = None,
    ) -> None:
        self.link = link or LinkSpec()
        self.rng = rng or random.Random(0)
        self.trace = trace or Trace()
        self.break_seconds = break_seconds
        self.failed = failed  # hears of handlers that raise what none should
        self.transports: dict[PeerId, SimTransport] = {}
        self.subscriptions: Counter[str] = Counter()  # how often someone began or ceased to hear a topic
        self._gone = Counts()  # what the dead had counted
        self._links: dict[tuple[PeerId, PeerId], LinkSpec] = {}
        self._connections: dict[int, Connection] = {}
        self._made = 0
        self.walled = False  # whether anything at all is blocked
        self._blocks: dict[tuple[PeerId, PeerId], None] = {}
        self._clogs: dict[tuple[PeerId, PeerId], float] = {}  # until when
        self._groups: dict[PeerId, int] | None = None
        self._off: dict[PeerId, None] = {}  # without power
        self._held: dict[tuple[PeerId, PeerId], list[Flight]] = {}
        self.gossip_lag_s = 0.0  # what is gossiped is taken in so much after it came
        self.corrupted: dict[PeerId, float] = {}  # rate of frames that arrive damaged, by sender

    def transport(
        self,
        peer: PeerId,
        machine: Machine | None = None,
        *,
        uplink: float | None = None,
        downlink: float | None = None,
    ) -> SimTransport:
        """A new machine on the network; of a peer that was there before, its next life."""
        assert peer not in self.transports, f"{peer} lives"
        rate = self.link.bytes_per_second
        transport = SimTransport(self, machine or Machine(peer), Uplink(uplink or rate), Downlink(downlink or rate))
        self.transports[peer] = transport
        if peer in self._off:
            del self._off[peer]
            self._change()
            for connection in self._of(peer):  # what comes for the life before is answered with a reset
                self._reset(transport, connection)
        return transport

    def _of(self, peer: PeerId) -> list[Connection]:
        return [each for each in self._connections.values() if peer in each.names]

    def _reset(self, source: Node, connection: Connection) -> None:
        for end in connection.ends:
            if end.transport.alive:
                self.post(source, end.transport, 0, 0, end.closed_by_peer)

    # ------------------------------------------------------------------------------------------------- frames

    def set_link(self, one: PeerId, other: PeerId, link: LinkSpec) -> None:
        """Sets the link between two peers from now on, one way. Its bandwidth doesn't matter: nodes have that."""
        self._links[one, other] = link

    def delay(self, source: PeerId, target: PeerId) -> float:
        """Seconds from one to the other at the present roll of the dice, retransmissions included."""
        link = self._links.get((source, target), self.link) if self._links else self.link
        seconds = link.delay_s
        if link.jitter_s:
            seconds += self.rng.uniform(0.0, link.jitter_s)
        if link.loss:
            patience = RETRANSMIT_SECONDS
            while seconds < self.break_seconds and self.rng.random() < link.loss:
                seconds += patience
                patience = min(2 * patience, RETRANSMIT_CEILING_SECONDS)
        return seconds

    def is_lost(self, source: PeerId, target: PeerId) -> bool:
        """Draws whether a frame is lost that nobody sends again."""
        link = self._links.get((source, target), self.link) if self._links else self.link
        return bool(link.loss) and self.rng.random() < link.loss

    def post(
        self,
        source: Node,
        target: Node,
        nbytes: int,
        lane: int,
        deliver: Callable[..., None],
        *args: Any,
        connection: Connection | None = None,
    ) -> None:
        """Sends a frame; `deliver` is called on the target's machine when it is there."""
        loop = asyncio.get_running_loop()
        flight = Flight(source, target, HEADER_BYTES + nbytes, lane, deliver, args)
        flight.connection = connection
        source.uplink.admit(flight, loop.time())
        flight.delay = self.delay(source.peer_id, target.peer_id)
        loop.call_at(flight.end + flight.delay, self._landed, flight, context=WORLD)

    def _landed(self, flight: Flight) -> None:
        """Takes in a frame whose last byte is at the other end, unless more urgent ones held it up."""
        if flight.lost:
            return
        loop = asyncio.get_running_loop()
        now = loop.time()
        if flight.end + flight.delay > now:
            loop.call_at(flight.end + flight.delay, self._landed, flight, context=WORLD)
            return
        if self.walled:
            way = (flight.source.peer_id, flight.target.peer_id)
            if self.is_blocked(*way):
                self._held.setdefault(way, []).append(flight)
                if self.trace.on:
                    kind = flight.args[0].kind if flight.args and isinstance(flight.args[0], Frame) else "a sign"
                    self.note("held", *way, kind)
                return
        finish = flight.target.downlink.admit(flight, now)
        if finish > now:
            loop.call_at(finish, self._hand_over, flight, context=WORLD)
        else:
            self._hand_over(flight)

    def _hand_over(self, flight: Flight) -> None:
        if flight.target.alive:
            flight.target.machine.call(flight.deliver, *flight.args)
        elif flight.deliver == self._knocked:
            self._knocked(*flight.args)

    # ------------------------------------------------------------------------------------------------- connections

    def dial(self, source: SimTransport, peer: PeerId, dial: Dial) -> None:
        """Sets up a connection, or says why there is none."""
        loop = asyncio.get_running_loop()
        loop.call_later(DIAL_SECONDS, dial.fail, f"no answer within {DIAL_SECONDS:g} s", context=WORLD)
        target = self.transports.get(peer)
        if target is not None:
            self.post(source, target, 0, 0, self._knocked, source, target, dial)
        elif not self.walled or not self.is_blocked(source.peer_id, peer):
            there_and_back = 2 * self.delay(source.peer_id, peer)
            loop.call_later(there_and_back, dial.fail, "connection refused", context=WORLD)

    def _knocked(self, source: SimTransport, target: SimTransport, dial: Dial) -> None:
        """Answers a dial, on the target's machine."""
        if not target.alive:  # it died meanwhile, or was stopped before and came to this only now
            if target.peer_id not in self._off:
                dial.fail("connection refused")
        elif not dial.over:
            self._made += 1
            connection = Connection(self._made, source, target)
            self._connections[connection.number] = connection
            self._watch(connection)
            self.post(target, source, 0, 0, self._accepted, connection, dial, connection=connection)

    def _accepted(self, connection: Connection, dial: Dial) -> None:
        """Opens a connection, on the dialling machine."""
        ours, theirs = connection.ends
        if dial.over:
            ours.close("given up", tell=True)
            return
        ours.open()
        dial.succeed()
        self.post(ours.transport, theirs.transport, 0, 0, theirs.open, connection=connection)

    def forget(self, connection: Connection) -> None:
        """Removes a connection: both ends are closed, or one is and the other's machine is gone."""
        self._connections.pop(connection.number, None)
        for way in list(self._held):
            self._held[way] = [flight for flight in self._held[way] if flight.connection is not connection]
            if not self._held[way]:
                del self._held[way]

    def are_connected(self, one: PeerId, other: PeerId) -> bool:
        """True if both have an open connection to each other."""
        return any(all(end.is_open for end in each.ends) for each in self._of(one) if other in each.names)

    def connected(self, one: PeerId, other: PeerId) -> bool:
        """True if there is a connection between them, open or not."""
        return any(other in each.names for each in self._of(one))

    def cut(self, one: PeerId, other: PeerId) -> None:
        """Resets all connections between two peers."""
        cut = [each for each in self._of(one) if other in each.names]
        if cut:
            self.note("cut", one, other)
        for connection in cut:
            for end in connection.ends:
                end.transport.machine.call(end.close, "the connection was reset")

    def kill(self, peer: PeerId, *, power: bool = False) -> None:
        """Removes a process, whose connections are reset; without power, it is only silent."""
        dead = self.transports.pop(peer)
        connections = self._of(peer)
        dead.die()
        self._gone += dead.counts
        for connection in connections:
            for end in connection.ends:
                if end.transport is dead:
                    end.close("this machine is gone")
            if not power:
                self._reset(dead, connection)
        if power:
            self._off[peer] = None
            self._change()

    # ------------------------------------------------------------------------------------------------- walls

    def is_blocked(self, source: PeerId, target: PeerId) -> bool:
        """True if nothing gets from one to the other at present."""
        groups = self._groups
        return (
            (source, target) in self._blocks
            or (source, target) in self._clogs
            or source in self._off
            or target in self._off
            or (groups is not None and groups.get(source, -1) != groups.get(target, -1))
        )

    def partition(self, groups: Sequence[Sequence[PeerId]]) -> None:
        """Separates groups of peers; those that are in none are a group together. Another
        partition replaces it, `heal` ends it.
        """
        self._groups = {peer: number for number, group in enumerate(groups) for peer in group}
        self.note("partition", detail=" | ".join(" ".join(group) for group in groups))
        self._change()

    def block(self, source: PeerId, target: PeerId) -> None:
        """Lets nothing from one to the other any more; the other way stays open."""
        self._blocks[source, target] = None
        self.note("blocked", source, target)
        self._change()

    def unblock(self, source: PeerId, target: PeerId) -> None:
        if (source, target) in self._blocks:
            del self._blocks[source, target]
            self.note("unblocked", source, target)
            self._change()

    def clog(self, source: PeerId, target: PeerId, seconds: float) -> None:
        """Holds the frames from one to the other for a while; then they come all at once."""
        loop = asyncio.get_running_loop()
        until = max(self._clogs.get((source, target), 0.0), loop.time() + seconds)
        self._clogs[source, target] = until
        self.note("clogged", source, target, f"{seconds:g} s")
        self._change()
        loop.call_at(until, self._unclog, (source, target), until, context=WORLD)

    def _unclog(self, way: tuple[PeerId, PeerId], until: float) -> None:
        if self._clogs.get(way) == until:
            del self._clogs[way]
            self._change()

    def corrupt(self, sender: PeerId, rate: float) -> None:
        """Damages this share of a peer's frames from now on."""
        self.corrupted[sender] = rate
        self.note("corrupts", sender, detail=f"{rate:g}")

    def corrupt_some(self, sender: PeerId, frame: Frame) -> Frame:
        """The frame; damaged, at the rate that was set for its sender."""
        rate = self.corrupted.get(sender, 0.0)
        return damaged(frame, self.rng) if rate and self.rng.random() < rate else frame

    def heal(self) -> None:
        """Opens every way, as it was made; frames that were held come. Machines without power stay silent."""
        self._groups = None
        self._blocks.clear()
        self._clogs.clear()
        self._links.clear()
        self.corrupted.clear()
        self.note("healed")
        self._change()

    def _change(self) -> None:
        """Takes note that some way was closed or opened."""
        self.walled = bool(self._blocks or self._clogs or self._off or self._groups is not None)
        for connection in list(self._connections.values()):
            self._watch(connection)
        loop = asyncio.get_running_loop()
        for way in [way for way in self._held if not self.is_blocked(*way)]:
            loop.call_later(self.delay(*way), self._release, self._held.pop(way), context=WORLD)

    def _release(self, flights: list[Flight]) -> None:
        for flight in flights:
            self._landed(flight)

    def _watch(self, connection: Connection) -> None:
        """Breaks a connection if it is stuck for too long."""
        one, other = connection.names
        stuck = self.walled and (self.is_blocked(one, other) or self.is_blocked(other, one))
        if not stuck:
            connection.stuck_since = None
        elif connection.stuck_since is None:
            loop = asyncio.get_running_loop()
            connection.stuck_since = loop.time()
            loop.call_later(self.break_seconds, self._break, connection, connection.stuck_since, context=WORLD)

    def _break(self, connection: Connection, since: float) -> None:
        if connection.stuck_since == since:
            for end in connection.ends:
                if end.transport.alive:
                    end.transport.machine.call(end.close, f"nothing got through for {self.break_seconds:g} s")

    # ------------------------------------------------------------------------------------------------- what was seen

    def note(self, what: str, peer: PeerId = "", other: PeerId = "", detail: str = "") -> None:
        """Writes an event of the network into the trace."""
        if self.trace.on:
            self.trace.add(asyncio.get_running_loop().time(), peer, what, other, detail=detail)

    def held(self) -> int:
        """Frames that wait behind a wall."""
        return sum(len(flights) for flights in self._held.values())

    def count(self) -> Counts:
        """The sum over all peers, the dead included."""
        return sum((transport.counts for transport in self.transports.values()), self._gone)
