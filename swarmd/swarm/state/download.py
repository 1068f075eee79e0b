"""The chunks of one snapshot, from every donor that has it at once.

Each donor gets the next chunk when it is free, so a fast one gives more. A chunk that doesn't come within the donor's
own measured time is asked of another one, too, and the donor gets no more until something of it arrives: a paused donor
costs seconds. A peer that gives wrong bytes is a liar and not asked again.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from swarmd.chunks import chunk_hash
from swarmd.config import RunConfig
from swarmd.errors import PeerFault, PeerUnreachable, Refused
from swarmd.swarm.signals import Signal
from swarmd.swarm.state.manifest import CHUNKS_AT_ONCE, SNAPSHOT_SECONDS, Manifest, read_manifest
from swarmd.swarm.wire.links import Links
from swarmd.swarm.wire.messages.common import Message
from swarmd.swarm.wire.messages.state import AskChunk, AskSnapshot
from swarmd.values import Buffer, PeerId, short

log = logging.getLogger(__name__)

DONORS_AT_ONCE = 8  # more make a download no faster than a home's downlink, and each exports its state for it
FIRST_SECONDS = 5.0  # until a donor's first chunk counts as late
LATE_FLOOR_SECONDS = 3.0  # a donor's event loop may be busy for a while
LATE_CEILING_SECONDS = 60.0
LATE_TIMES = 4.0  # a chunk that takes so many times the donor's usual is late
CHUNK_SECONDS = 180.0  # a donor that gives a chunk no sooner is of no use
AHEAD_SECONDS = 0.5  # of chunks asked ahead of a donor, so that its link never idles
PACE_WEIGHT = 0.3  # of the newest measurement
HEDGE_TIMES = 2.0  # at the end a chunk is asked twice if another donor would bring it so many times sooner
POLL_SECONDS = 0.25
RECRUIT_SECONDS = 2.0  # between questions to a donor that couldn't be reached
ORPHAN_SECONDS = 10.0  # without any donor, though some are asked

Candidates = Callable[[], list[PeerId]]


@dataclass(frozen=True)
class Questions:
    """The questions for donors: for the snapshot, and for a chunk of it by its number."""

    snapshot: Message
    chunk: Callable[[int], Message]


def of_replicas(stage: int, version: int) -> Questions:
    """Questions to a stage's replicas, for what they have in memory."""
    return Questions(AskSnapshot(stage, version), lambda number: AskChunk(version, number))


@dataclass(frozen=True)
class Sources:
    """The donors of a snapshot, and what they are asked. Liars are not asked again."""

    candidates: Candidates
    questions: Questions
    liars: set[PeerId] = field(default_factory=set)
    heard: Callable[[PeerId, Manifest], None] = lambda peer, manifest: None  # of every manifest that comes meanwhile


class OutOfDonors(Exception):
    """Nobody has this version any more."""


@dataclass
class Supplier:
    """A donor of this snapshot, as the joiner sees it."""

    peer: PeerId
    asked: dict[int, tuple[float, float]] = field(default_factory=dict)  # chunk -> asked at, late at
    pace: float | None = None  # seconds per chunk; None until measured
    late: bool = False  # something is, and nothing has come since

    def room(self) -> int:
        """The number of chunks that may be asked of it besides."""
        if self.late:
            return 0
        ahead = 1 if self.pace is None else 1 + int(AHEAD_SECONDS / max(1e-9, self.pace))
        return max(0, min(CHUNKS_AT_ONCE, ahead) - len(self.asked))

    def patience(self) -> float:
        """Until the next chunk asked of it is late."""
        if self.pace is None:
            return FIRST_SECONDS
        usual = self.pace * (len(self.asked) + 1)
        return min(LATE_CEILING_SECONDS, max(LATE_FLOOR_SECONDS, LATE_TIMES * usual))

    def came(self, seconds: float, together: int) -> None:
        """A chunk came, `together` with others that were asked at the time."""
        pace = seconds / together
        self.pace = pace if self.pace is None else self.pace + PACE_WEIGHT * (pace - self.pace)
        self.late = False


class Download:
    """One snapshot on its way here."""

    def __init__(
        self,
        run: RunConfig,
        links: Links,
        stage: int,
        gradient_size: int,
        manifest: Manifest,
        sources: Sources,
    ) -> None:
        self._run, self._links, self.stage, self._gradient_size = run, links, stage, gradient_size
        self.manifest, self._questions = manifest, sources.questions
        self._candidates, self._liars, self._heard = sources.candidates, sources.liars, sources.heard
        self.state = bytearray(manifest.snapshot.nbytes)
        self.given: dict[PeerId, int] = {}  # chunks by donor
        self._done: set[int] = set()
        self._queue: deque[int] = deque()
        self._suppliers: dict[PeerId, Supplier] = {}
        self._useless: set[PeerId] = set()  # said no to this version
        self._retry_at: dict[PeerId, float] = {}
        self._asking: dict[PeerId, asyncio.Task[None]] = {}
        self._fetching: set[asyncio.Task[None]] = set()
        self._changed = Signal()
        self._given_up = ""  # why nobody should give more of it

    @property
    def nbytes(self) -> int:
        """Bytes that are here and right."""
        spans = (self.manifest.span(number) for number in self._done)
        return sum(span.stop - span.start for span in spans)

    @property
    def donors(self) -> int:
        return len(self._suppliers)

    def pieces(self) -> dict[str, memoryview]:
        """The chunks that are here, by hash."""
        view = memoryview(self.state)
        return {self.manifest.snapshot.hashes[number]: view[self.manifest.span(number)] for number in self._done}

    async def keep(self, pieces: dict[str, memoryview]) -> None:
        """Takes over chunks that this peer has already."""
        for number, name in enumerate(self.manifest.snapshot.hashes):
            span = self.manifest.span(number)
            if number not in self._done and name in pieces and pieces[name].nbytes == span.stop - span.start:
                self.state[span] = pieces[name]
                self._done.add(number)
                await asyncio.sleep(0)

    def add(self, peer: PeerId) -> None:
        """A donor that has pinned this version."""
        self._suppliers.setdefault(peer, Supplier(peer))
        self._changed.notify()

    def give_up(self, why: str) -> None:
        """Ends it with OutOfDonors: this state isn't the one to take."""
        self._given_up = why
        self._changed.notify()

    async def run(self) -> Buffer:
        """The whole state. Raises OutOfDonors; then what came so far is in `pieces`."""
        chunks = len(self.manifest.snapshot.hashes)
        self._queue = deque(number for number in range(chunks) if number not in self._done)
        loop = asyncio.get_running_loop()
        orphaned = loop.time()
        try:
            while len(self._done) < chunks:
                if self._given_up:
                    raise OutOfDonors(self._given_up)
                now = loop.time()
                self._recruit(now)
                self._look_for_late(now)
                self._dispatch(now)
                if self._suppliers:
                    orphaned = now
                elif not self._asking or now - orphaned > ORPHAN_SECONDS:
                    raise OutOfDonors(f"nobody gives version {self.manifest.version} any more")
                await self._changed.wait(POLL_SECONDS)
        finally:
            tasks = [*self._asking.values(), *self._fetching]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return self.state

    # ---------------------------------------------------------------------------------------------- donors

    def _recruit(self, now: float) -> None:
        """Asks other replicas for the same version."""
        for peer in self._candidates():
            known = peer in self._suppliers or peer in self._asking or peer in self._useless or peer in self._liars
            full = len(self._suppliers) + len(self._asking) >= DONORS_AT_ONCE
            if not known and not full and now >= self._retry_at.get(peer, 0.0):
                self._asking[peer] = asyncio.create_task(self._win(peer), name=f"recruit {short(peer)}")

    async def _win(self, peer: PeerId) -> None:
        loop = asyncio.get_running_loop()
        question = self._questions.snapshot
        try:
            snapshot = await self._links.ask(peer, question, deadline_s=SNAPSHOT_SECONDS)
            manifest = read_manifest(self._run, snapshot, self._gradient_size)
        except (PeerUnreachable, TimeoutError) as trouble:
            log.info("%s gives no state now: %s", short(peer), trouble)
            self._retry_at[peer] = loop.time() + RECRUIT_SECONDS
        except Refused as refusal:
            log.info("%s can't give version %d: %s", short(peer), self.manifest.version, refusal)
            self._useless.add(peer)
        except PeerFault as fault:
            self._accuse(peer, fault)
        else:
            if manifest.root == self.manifest.root:
                self.add(peer)
            else:
                self._useless.add(peer)
            self._heard(peer, manifest)
        finally:
            del self._asking[peer]
            self._changed.notify()

    def _lose(self, supplier: Supplier, why: object) -> None:
        """This donor gives no more for the moment; what it was asked goes to others."""
        if self._suppliers.get(supplier.peer) is supplier:
            del self._suppliers[supplier.peer]
            self._retry_at[supplier.peer] = asyncio.get_running_loop().time() + RECRUIT_SECONDS
            log.info("%s gives no more chunks: %s", short(supplier.peer), why)
            self._give_back(supplier)

    def _accuse(self, peer: PeerId, fault: PeerFault) -> None:
        log.warning("state of stage %d from %s is refused: %s", self.stage, short(peer), fault)
        self._liars.add(peer)

    # ---------------------------------------------------------------------------------------------- chunks

    def _dispatch(self, now: float) -> None:
        """Gives every donor what it has room for, one chunk each in turn, the fastest first."""
        free = sorted(self._suppliers.values(), key=lambda it: (it.pace or 0.0, it.peer))
        while free:
            free = [supplier for supplier in free if supplier.room() and self._ask_next(supplier, now)]

    def _ask_next(self, supplier: Supplier, now: float) -> bool:
        number = self._next(supplier, now)
        if number is None:
            return False
        supplier.asked[number] = (now, now + supplier.patience())
        task = asyncio.create_task(self._fetch(supplier, number), name=f"chunk {number}")
        self._fetching.add(task)
        task.add_done_callback(self._fetching.discard)
        return True

    def _next(self, supplier: Supplier, now: float) -> int | None:
        """The next chunk for a donor: one that nobody was asked for, or that is late elsewhere; at the end, one that
        it would bring much sooner.
        """
        for _ in range(len(self._queue)):
            number = self._queue.popleft()
            if number in self._done:
                continue
            if number not in supplier.asked:
                return number
            self._queue.append(number)
        if supplier.pace is None or self._queue:
            return None
        gains: list[tuple[float, int]] = []
        mine = supplier.pace * (len(supplier.asked) + 1)
        for other in self._suppliers.values():
            for number, (asked, _) in other.asked.items():
                if number not in self._done and self._askers(number) == 1 and number not in supplier.asked:
                    usual = (other.pace if other.pace is not None else FIRST_SECONDS) * len(other.asked)
                    waited = now - asked
                    gains.append((max(usual - waited, waited - usual) - HEDGE_TIMES * mine, number))
        gain, number = max(gains, default=(0.0, -1))
        return number if gain > 0 else None

    def _askers(self, number: int) -> int:
        return sum(number in supplier.asked for supplier in self._suppliers.values())

    def _look_for_late(self, now: float) -> None:
        for supplier in self._suppliers.values():
            for number, (_, late_at) in supplier.asked.items():
                if now >= late_at and not supplier.late and number not in self._done:
                    log.info("%s is late with chunk %d", short(supplier.peer), number)
                    supplier.late = True
            if supplier.late:
                self._give_back(supplier)

    def _give_back(self, supplier: Supplier) -> None:
        """Everything that a donor was asked and hasn't brought may be asked of others."""
        own = supplier.peer in self._suppliers
        for number in supplier.asked:
            if number not in self._done and number not in self._queue and self._askers(number) <= own:
                self._queue.appendleft(number)

    async def _fetch(self, supplier: Supplier, number: int) -> None:
        loop = asyncio.get_running_loop()
        asked, together = loop.time(), len(supplier.asked)
        ask = self._questions.chunk(number)
        try:
            chunk = await self._links.ask(supplier.peer, ask, deadline_s=CHUNK_SECONDS, urgency="bulk")
            self._take(number, chunk.data)
            supplier.came(loop.time() - asked, together)
            self.given[supplier.peer] = self.given.get(supplier.peer, 0) + 1
        except Refused as refusal:
            self._useless.add(supplier.peer)
            self._lose(supplier, refusal)
        except (PeerUnreachable, TimeoutError) as trouble:
            self._lose(supplier, trouble)
        except PeerFault as fault:
            self._accuse(supplier.peer, fault)
            self._lose(supplier, fault)
        finally:
            supplier.asked.pop(number, None)
            if number not in self._done and number not in self._queue and not self._askers(number):
                self._queue.appendleft(number)
            self._changed.notify()

    def _take(self, number: int, data: Buffer) -> None:
        """Raises PeerFault for a chunk that is not what its hash says."""
        span = self.manifest.span(number)
        if (
            memoryview(data).nbytes != span.stop - span.start
            or chunk_hash(data) != self.manifest.snapshot.hashes[number]
        ):
            raise PeerFault(f"chunk {number} is not what its hash says")
        if number not in self._done:
            self.state[span] = data
            self._done.add(number)
