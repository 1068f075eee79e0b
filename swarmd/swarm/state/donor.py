"""The giving end of a state transfer: pins the stage's state at a version and serves it in chunks.

The history's lock is held only while the device's state is copied into host memory; hashing comes after. Joiners that
come within a few steps share one snapshot. Relies on `History` for the version and on `Compute` for the state.
"""

import asyncio
import logging
from collections import deque
from dataclasses import dataclass, field

from swarmd.errors import OutOfRange, Refused
from swarmd.swarm.history.history import History
from swarmd.swarm.ports import Compute
from swarmd.swarm.signals import Signal
from swarmd.swarm.state.manifest import CHUNKS_AT_ONCE, take_snapshot
from swarmd.swarm.wire.links import Scope
from swarmd.swarm.wire.messages.state import AskChunk, AskSnapshot, Chunk, Snapshot
from swarmd.values import Buffer, PeerId, short

log = logging.getLogger(__name__)

PINNED_VERSIONS = 2  # at most; each is a copy of the whole state in host memory
PINNED_SECONDS = 600.0  # a snapshot nobody asks for is let go after this
PULLED_SECONDS = 60.0  # one that gave chunks within this is being pulled: it makes no room for another
UNTOUCHED_SECONDS = 5.0  # the same for one of which no chunk was asked yet
SHARED_STEPS = 2  # a snapshot so many steps old is given to the next joiner, too: gradients since then are still held
BEHIND_SECONDS = 5.0  # a donor asked for a version that it is about to reach waits so long for it
CHUNKS_SERVED_AT_ONCE = 16  # on their way to all joiners together
CHUNK_WAY_SECONDS = 5.0  # a chunk counts as arrived after this, if nothing said so before


@dataclass
class Pinned:
    """A donor's snapshot."""

    snapshot: Snapshot
    state: Buffer
    used: float  # loop time
    touched: bool = False  # chunks were asked
    pullers: set[PeerId] = field(default_factory=set)  # who pulls it, as far as they are connected

    def is_pulled(self, now: float) -> bool:
        """Tells if it makes no room for another: a connected peer has asked for something of it lately."""
        return bool(self.pullers) and now - self.used <= (PULLED_SECONDS if self.touched else UNTOUCHED_SECONDS)


class Donor:
    """Serves this peer's stage to joiners."""

    def __init__(self, scope: Scope, history: History, compute: Compute, stage: int) -> None:
        self._links, self._history, self._compute, self._stage = scope.links, history, compute, stage
        self._pinned: dict[int, Pinned] = {}
        self._pinning = asyncio.Lock()
        self._ways = Ways()
        self._closed = False
        scope.handle(AskSnapshot, self._answer_snapshot)
        scope.handle(AskChunk, self._answer_chunk)

    async def _answer_snapshot(self, peer: PeerId, ask: AskSnapshot) -> Snapshot:
        history = self._history
        if ask.stage != self._stage:
            raise Refused(f"this peer holds stage {self._stage}")
        if ask.version > history.version:
            await history.changed.until(lambda: history.version >= ask.version, BEHIND_SECONDS)
        self._check_able()
        for pinned in self._pinned.values():  # a joiner pulls one snapshot at a time: it has given up any other
            if pinned.snapshot.version != ask.version:
                pinned.pullers.discard(peer)
        async with self._pinning:
            pinned = self._find(ask.version) or await self._pin(ask.version)
        self._pulls(pinned, peer)
        log.info("%s pulls stage %d at version %d from here", short(peer), self._stage, pinned.snapshot.version)
        return pinned.snapshot

    def _pulls(self, pinned: Pinned, peer: PeerId) -> None:
        """Someone pulls a snapshot, unless it is gone by now: making one takes a while."""
        if peer in self._links.transport.connected():
            pinned.pullers.add(peer)

    def pullers(self, since: float) -> set[PeerId]:
        """Peers that pull a snapshot of which something was asked since a loop time."""
        return {peer for it in self._pinned.values() if it.used >= since for peer in it.pullers}

    def lost(self, peer: PeerId) -> None:
        """Its connection broke: what only it pulled is in nobody's way, nor what was on its way to it. Should it come
        back, it goes on where it was if nobody else needed the room.
        """
        for pinned in self._pinned.values():
            pinned.pullers.discard(peer)
        self._ways.lost(peer)

    def _check_able(self) -> None:
        """Raises Refused unless the device has the state of the history's version."""
        if self._closed or self._history.behind or not self._history.ready:
            raise Refused("this peer is behind itself, or goes to another stage")

    @property
    def versions(self) -> tuple[int, ...]:
        """The versions of the snapshots that are pinned."""
        return tuple(self._pinned)

    def _find(self, version: int) -> Pinned | None:
        """The pinned snapshot of that version; for 0, of a version that is new enough."""
        if version:
            return self._pinned.get(version)
        newest = max(self._pinned, default=-1)
        return self._pinned[newest] if newest >= max(0, self._history.version - SHARED_STEPS) else None

    async def _pin(self, wanted: int) -> Pinned:
        """Makes a snapshot of the present version. Raises Refused if another is wanted, or there is no room."""
        if wanted not in (0, self._history.version):
            raise Refused(f"version {wanted} is not pinned here")
        self._make_room()
        async with self._history.lock:  # no commit in between
            self._check_able()
            version, newest = self._history.version, self._history.record
            if wanted not in (0, version):
                raise Refused(f"version {wanted} is over here")
            try:
                state = await self._compute.export_state()
            except MemoryError:
                raise Refused("this peer has no memory for a snapshot") from None
        snapshot = await take_snapshot(newest, state)
        self._pinned[version] = Pinned(snapshot, state, asyncio.get_running_loop().time())
        return self._pinned[version]

    def _make_room(self) -> None:
        """Lets go of snapshots that nobody pulls. Raises Refused if all are being pulled."""
        now = asyncio.get_running_loop().time()
        for version in sorted(self._pinned, key=lambda version: self._pinned[version].used):
            if len(self._pinned) >= PINNED_VERSIONS and not self._pinned[version].is_pulled(now):
                del self._pinned[version]
        if len(self._pinned) >= PINNED_VERSIONS:
            raise Refused(f"{PINNED_VERSIONS} other versions are being pulled from here")

    async def _answer_chunk(self, peer: PeerId, ask: AskChunk) -> Chunk:
        await self._ways.take(peer)
        pinned = self._pinned.get(ask.version)
        if pinned is None:
            raise Refused(f"version {ask.version} is not pinned here any more")
        if not 0 <= ask.number < len(pinned.snapshot.hashes):
            raise OutOfRange(f"the state has no chunk {ask.number}")
        pinned.used, pinned.touched = asyncio.get_running_loop().time(), True
        self._pulls(pinned, peer)
        start = ask.number * pinned.snapshot.chunk_bytes
        return Chunk(memoryview(pinned.state)[start : start + pinned.snapshot.chunk_bytes])

    def forget(self) -> None:
        """This peer's own state came from others: what is pinned may be of another history."""
        self._pinned.clear()

    def close(self) -> None:
        """This peer leaves its stage."""
        self._closed = True
        self.forget()

    def sweep(self, now: float) -> None:
        """Lets go of snapshots that nobody has asked for in a while."""
        for version in [version for version, it in self._pinned.items() if now - it.used > PINNED_SECONDS]:
            del self._pinned[version]


class Ways:
    """The chunks that are on their way to joiners; bounded, so that they leave room for training on the donor's uplink.

    No word comes when one arrives. But a joiner keeps no more than CHUNKS_AT_ONCE asked, so its next question says that
    an earlier chunk has come.
    """

    def __init__(self) -> None:
        self._under_way: deque[tuple[PeerId, float]] = deque()  # to whom, since when
        self._turn = asyncio.Lock()  # first come, first served
        self._fewer = Signal()

    def lost(self, peer: PeerId) -> None:
        """Forgets what was on its way to a peer."""
        if any(way[0] == peer for way in self._under_way):
            self._under_way = deque(way for way in self._under_way if way[0] != peer)
            self._fewer.notify()

    async def take(self, peer: PeerId) -> None:
        """Waits until one more may set out."""
        mine = [way for way in self._under_way if way[0] == peer]
        if len(mine) >= CHUNKS_AT_ONCE:
            self._under_way.remove(mine[0])
            self._fewer.notify()
        loop = asyncio.get_running_loop()
        async with self._turn:
            while len(self._under_way) >= CHUNKS_SERVED_AT_ONCE:
                left = self._under_way[0][1] + CHUNK_WAY_SECONDS - loop.time()
                if left <= 0:
                    self._under_way.popleft()
                else:
                    await self._fewer.wait(left)
            self._under_way.append((peer, loop.time()))
