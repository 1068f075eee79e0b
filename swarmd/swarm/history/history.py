"""A peer's place in the run's history: its version, the chain of records that led there, and the way to the next one.

A record is applied when it follows the present one; what is missing in between is asked for. Only the gradient that the
record names is applied: the one at hand, or one fetched from a holder. Relies on `Rounds` for gradients and on
`Compute` to step. That another peer's records are not ours is noticed here; `forks.py` decides what follows from it.
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from swarmd.config import RunConfig
from swarmd.errors import NO_ANSWER, NonFinite, Refused, SwarmError, UnknownFormat
from swarmd.swarm.history.chain import Chain
from swarmd.swarm.history.ledger import Ledger
from swarmd.swarm.history.listener import HistoryListener
from swarmd.swarm.history.origin import Origin
from swarmd.swarm.history.record import Record, counts_after, genesis_hash, is_checkpointed, is_of_now
from swarmd.swarm.history.record_codec import record_from_raw
from swarmd.swarm.history.votes import OwnVotes
from swarmd.swarm.ports import Compute, Store
from swarmd.swarm.signals import Signal
from swarmd.swarm.tasks import to_the_end
from swarmd.swarm.wire.links import Links
from swarmd.swarm.wire.messages.commit import AskRecord, Commit
from swarmd.swarm.wire.messages.common import Ack
from swarmd.values import PeerId, short

log = logging.getLogger(__name__)

CONTRIBUTIONS_KEPT = 2  # steps: the one before decides who may be an acceptor
RECORD_SECONDS = 10.0  # to answer with a record
REFUSED_SECONDS = 10.0  # for so long one may be between two histories, or not have heard of a record

A = TypeVar("A")

Confirm = Callable[[Record, PeerId, Sequence[PeerId]], Awaitable[bool]]
"""Finds out if a record is decided, from who brought it and the acceptors that are said to have accepted it."""


class Gradients(Protocol):
    """The averaged gradients of the stage that this peer serves."""

    async def gather(self, record: Record) -> bool:
        """Makes sure that `Compute` has assembled the gradient a record names. False: nobody has it any more."""

    def objection(self, record: Record) -> str:
        """Says what of a record doesn't fit the gradients that were assembled here; "" if it fits, or that isn't
        known.
        """

    def bears_out(self, record: Record) -> bool:
        """True if a round in which this peer took part came out as a record says."""


class History:
    """This peer's version and the records that led there."""

    def __init__(self, run: RunConfig, links: Links, store: Store) -> None:
        self._run, self._links = run, links
        self.chain = Chain(genesis_hash(run))
        self.entered = 0.0  # loop time when this peer came to this version
        self.digest = ""  # of the parameters at this version
        self.ledger = Ledger(store)
        self.ready = False  # the parameters are those of `version`: records may be applied
        self.behind = False  # nobody has the gradients any more: the whole state must be fetched
        self.origin = Origin()
        self.crosses_at: int | None = None  # newest version in common with the history to which this peer may cross
        self.departures = 0  # how often this peer left its stage: who waits for a version is refused then
        self.replacements = 0  # how often the state was replaced: what is under way for a step is void then
        self.broken = 0  # the version of which this stage's parameters were not finite: there are none; 0: all is well
        self.checkpointed = False  # some version of the run is on its peers' disks, as far as the records tell
        self.ended: Record | None = None  # with it the run has ended for good
        self._missed = 0.0  # loop time when nobody had a gradient
        self.changed = Signal()
        self._ahead: Callable[[Record, PeerId], None] | None = None
        self._listeners: list[HistoryListener] = []
        self._contributed: list[int] = []
        self.returned: Record | None = None  # the newest return that this peer has made
        self._refused: tuple[int, float] = (-1, 0.0)  # the version from which no record leads on, and since when
        self.lock = asyncio.Lock()  # held while the version changes
        self._applying: set[asyncio.Task[Any]] = set()
        self._compute: Compute | None = None
        self._stage = -1
        self.gradients: Gradients | None = None
        self.confirm: Confirm | None = None  # a record that others bring is believed only if this says it is decided
        # The version that others are believed to be at: for none that is made up a state is given up.
        self.believed_version: Callable[[], float] = lambda: math.inf
        self.votes = OwnVotes()
        links.handle(Commit, self._answer_commit)
        links.handle(AskRecord, self._answer_record)

    def attach(self, stage: int, compute: Compute, gradients: Gradients) -> None:
        """Steps the parameters of a stage from now on."""
        self._stage, self._compute, self.gradients = stage, compute, gradients

    def detach(self) -> None:
        """Leaves the stage at the present version: from here on nothing of the next step reaches this peer's sum."""
        self.ready = False
        self.departures += 1
        self.replacements += 1
        self.changed.notify()

    def settle(self, digest: str) -> None:
        """Goes on with the parameters of the stage that was attached last, which are of this peer's own version, as if
        it had always been there. What it said and promised stays said.
        """
        self.digest, self.ready, self.behind, self.broken = digest, True, False, 0
        self.changed.notify()

    def listen(self, listener: HistoryListener) -> None:
        """Tells a listener of all events from now on, after those who came before it."""
        self._listeners.append(listener)

    @contextlib.contextmanager
    def passing_on(self, ahead: Callable[[Record, PeerId], None]) -> Iterator[None]:
        """Gives records that can't be applied before the whole state is here, and who brought them, to `ahead`."""
        self._ahead = ahead
        try:
            yield
        finally:
            self._ahead = None

    @contextlib.contextmanager
    def crossing(self, ancestor: int) -> Iterator[None]:
        """Keeps others from counting on this peer while it may cross to another history, which is its own up to version
        `ancestor`.
        """
        self.crosses_at = ancestor
        try:
            yield
        finally:
            self.crosses_at = None

    def took_part(self, step: int) -> None:
        """Notes that this incarnation's sum is in the round of a step: if that becomes the record, it may be an
        acceptor of the next.
        """
        self._contributed = sorted({*self._contributed, step})[-CONTRIBUTIONS_KEPT:]  # a round may be tried again

    def contributed(self, step: int) -> bool:
        """True if it took part; to found the run counts as step 0."""
        return self.origin.founded if step == 0 else step in self._contributed

    @property
    def version(self) -> int:
        """The version that this peer is at."""
        return self.chain.version

    @property
    def record(self) -> Record | None:
        """The newest record, which led to `version`; None at version 0."""
        return self.chain.newest

    @property
    def record_hash(self) -> str:
        """The newest record's hash; at version 0 the run's own."""
        return self.chain.newest_hash

    @property
    def finished(self) -> bool:
        """True once no step follows, as all are done or the run has failed."""
        return (self.version >= self._run.steps and not self.broken) or bool(self.failure)

    @property
    def failure(self) -> str:
        """The reason why the run ends before its last step, the same at all peers with the same record; or ""."""
        record, limit = self.record, self._run.skips_limit
        if self.ended is not None:
            return self.ended.why
        if self.broken >= self._run.steps:  # the others have ended: nobody returns
            return f"the parameters of stage {self._stage} came out not finite at step {self.broken}, the last one"
        if record is None or not 0 < limit <= record.skips:
            return ""
        last = f"; of the last one, {record.why}" if record.why else ""
        return f"{record.skips} steps in a row were skipped, up to step {record.step} (skips_limit = {limit}){last}"

    def objection(self, record: Record) -> str:
        """Says what is wrong with a record as the next one, as far as this peer can tell: its counts don't follow from
        the record before, or its norm isn't that of the gradient.
        """
        if record.after or record.parent != self.record_hash:
            return ""
        if (record.skips, record.broke_at) != counts_after(self.record, record.step, skipped=record.skipped):
            return "its counts don't follow from the record before"
        return self.gradients.objection(record) if self.gradients is not None else ""

    def replace(self, record: Record | None, digest: str, *, crossed_at: int | None = None) -> None:
        """Goes on from other parameters: those after this record (None: the untrained ones). `crossed_at`: the newest
        version in common with the history that they are of, if that is another one.
        """
        # Steps after a version that is older than this peer's, or than its disk, are applied, and written, once more;
        # of a return, the step itself is.
        returned = record is not None and bool(record.after)
        ancestor = record.step - returned if record is not None else 0
        if crossed_at is not None:
            ancestor = crossed_at
        self.ledger.void(ancestor)
        self.chain.move(record, ancestor)
        if record is not None:
            self.entered = asyncio.get_running_loop().time()
            self.checkpointed |= record.step - record.skips >= self._run.checkpoint_every > 0
        self.digest, self.behind, self.ready, self.crosses_at = digest, False, True, None
        self._contributed, self.broken = [], 0
        self.origin.decided()
        if record is not None and returned:
            self.returned = record
            self.ledger.append(record, self._stage, digest)
        self.replacements += 1
        for listener in self._listeners:
            self._links.fence.call(listener.on_replaced)
        self.changed.notify()

    async def left(self, step: int) -> None:
        """Waits until a step is over: it has committed, or the state was replaced."""
        replacements = self.replacements
        await self.changed.until(lambda: self.version >= step or self.replacements != replacements)

    async def await_version(self, version: int, record_hash: str, peer: PeerId, seconds: float) -> None:
        """Waits until this peer is at a version that `peer` is at, asking it for what is missing.

        Raises Refused when that version is over, belongs to another history, or doesn't come in time.
        """
        departures = self.departures
        if self.version < version and not self.lock.locked():
            await self.catch_up(peer, version)
        await self.changed.until(lambda: self.version >= version or self.behind, seconds)
        if self.departures != departures:
            raise Refused("this peer has left its stage")
        if self.version < version:
            raise Refused(f"this peer is still at version {self.version}")
        if self.version > version:
            raise Refused(f"step {version + 1} is over")
        if record_hash != self.record_hash:
            raise Refused(f"another history: its version {version} is not ours")
        if self.broken:
            raise Refused(f"the parameters of stage {self._stage} are not finite at version {version}")

    # ---------------------------------------------------------------------------------------------- records

    async def _answer_record(self, peer: PeerId, ask: AskRecord) -> Commit:
        record = self.chain.at(ask.step)
        if record is None:
            raise Refused(f"no record of step {ask.step} here")
        if self.crosses_at is not None:  # nobody may count on it to stay
            raise Refused("this peer crosses to another history")
        return Commit(record.raw)

    async def _answer_commit(self, peer: PeerId, commit: Commit) -> Ack:
        record = record_from_raw(self._run, commit.record)
        if not record.after and self.chain.contradicts(record):
            self.tell_foreign(peer)
            raise Refused(f"another history: its record of step {record.step} is not ours")
        if not await self._to_the_end(self._take(peer, record, commit), f"take {record.step}"):
            raise Refused(f"the record of step {record.step} isn't confirmed by its acceptors as yet")
        return Ack()

    async def _take(self, peer: PeerId, record: Record, commit: Commit) -> bool:
        """Applies a record that somebody tells, and passes it on if that is asked. False if it isn't confirmed."""
        relayed = not commit.relay or record.step <= self.version
        if record.place[1] == self.record_hash or self.chain.is_new_return(record):
            if not await self.confirms(record, peer, commit.voters):
                return False
            if not relayed:
                self._relay(peer, commit)
                relayed = True
        await self.adopt(record, peer)
        if not relayed and self.chain.has(record.hash):  # this peer was late itself
            self._relay(peer, commit)
        return True

    async def confirms(self, record: Record, source: PeerId, voters: Sequence[PeerId] = ()) -> bool:
        """True if a record that `source` brought is decided, as far as that can be found out."""
        assert self.confirm is not None, "a peer knows how to confirm records before it hears of any"
        return await self.confirm(record, source, voters)

    def _relay(self, source: PeerId, commit: Commit) -> None:
        for listener in self._listeners:
            listener.on_relay(source, commit)

    def _tell_return(self, record: Record) -> None:
        for listener in self._listeners:
            listener.on_return(record)

    def tell_foreign(self, peer: PeerId) -> None:
        """Tells the listeners that a peer is of another history, or will be."""
        for listener in self._listeners:
            listener.on_foreign(peer)

    async def adopt(self, record: Record, source: PeerId) -> None:
        """Applies a record that someone decided, and those before it that are missing here."""
        if self.chain.is_new_return(record):
            if await self.confirms(record, source):
                self._tell_return(record)
            return
        if self._ahead is not None and (self.behind or not self.ready):
            self._ahead(record, source)
            return
        if record.step > self.version + 1:
            await self.catch_up(source, record.step - 1)
        await self._advance(record, source)

    async def catch_up(self, source: PeerId, version: int) -> None:
        """Fetches and applies records up to a version, as far as the source gives them."""
        while self.version < version and not self.behind and self.ready:
            before = self.version
            try:
                commit = await self._links.ask(source, AskRecord(before + 1), deadline_s=RECORD_SECONDS)
                record = record_from_raw(self._run, commit.record)
            except NO_ANSWER as trouble:
                log.info("no record of step %d from %s: %s", before + 1, short(source), trouble)
                known = not isinstance(trouble, UnknownFormat)
                if isinstance(trouble, Refused) and known and await self.is_shown(source, version):
                    self._no_record()
                return
            await self._advance(record, source)
            if self.version == before:
                return

    async def is_shown(self, source: PeerId, version: int) -> bool:
        """Tells if a peer shows the record of a version: its word alone makes it no further than this one."""
        try:
            commit = await self._links.ask(source, AskRecord(version), deadline_s=RECORD_SECONDS)
            if record_from_raw(self._run, commit.record).step == version:
                return True
        except NO_ANSWER as trouble:
            log.info("no record of step %d from %s, which says it is there: %s", version, short(source), trouble)
        for listener in self._listeners:
            listener.on_unshown(source)
        return False

    def _no_record(self) -> None:
        """Notes that someone who is ahead has refused the next record: a peer that was away for too long gets none."""
        now = asyncio.get_running_loop().time()
        if self._refused[0] != self.version:
            self._refused = self.version, now
        elif now - self._refused[1] > REFUSED_SECONDS and self.believed_version() > self.version:
            self._refused = -1, 0.0
            self.fall_behind(f"nobody has the record of step {self.version + 1} any more")

    async def _advance(self, record: Record, source: PeerId) -> None:
        """Applies a record if it is the next one; to the end, even if its sender is lost meanwhile: the device can't be
        called back halfway.
        """

        async def work() -> None:
            if record.parent == self.record_hash and not await self.confirms(record, source):
                return
            async with self.lock:
                now = asyncio.get_running_loop().time()
                tried = self.behind and now - self._missed < RECORD_SECONDS  # many ask for the same at once
                if record.step == self.version + 1 and self.ready and not tried:
                    await self._apply(record, source)

        await self._to_the_end(work(), f"apply {record.step}")

    async def _to_the_end(self, work: Coroutine[Any, Any, A], name: str) -> A:
        """Runs a coroutine to its end, even if the caller is cancelled meanwhile; returns its result."""
        return await to_the_end(asyncio.create_task(work, name=name), self._applying)

    def close(self) -> None:
        """Ends the records that are being applied: this peer leaves."""
        for task in self._applying:
            task.cancel()

    async def _apply(self, record: Record, source: PeerId) -> None:
        """Goes one version further. The lock is held."""
        assert self._compute is not None and self.gradients is not None
        if record.parent != self.record_hash or not is_of_now(self._run, record):
            log.warning("record of step %d from %s belongs to another history", record.step, short(source))
            self.tell_foreign(source)
            return
        if self._refuses(record, source):
            return
        if not record.skipped and not await self.gradients.gather(record):
            self.fall_behind(f"nobody has the gradient of step {record.step} any more")
            return
        if self._refuses(record, source):  # now that the gradient is here
            return
        try:
            digest = await self._step(record)
        except NonFinite as trouble:
            self._break(record, trouble)
        except SwarmError:
            raise
        except MemoryError:  # half-way, maybe: the state is neither of one version nor of the other
            self.fall_behind(f"there is no memory for step {record.step}")
        except Exception as trouble:  # noqa: BLE001 - the same; and a version behind, the device would refuse all hops
            self._links.fence.note(f"step {record.step} on this device", trouble)
            self.fall_behind(f"step {record.step} failed here")
        else:
            self._enter(record, digest)

    async def _step(self, record: Record) -> str:
        """Has the device take a step. Returns the parameters' digest."""
        assert self._compute is not None
        if record.skipped:
            return await self._compute.skip(record.step)
        return await self._compute.apply(
            record.step, learning_rate=record.learning_rate, clip_factor=record.clip_factor
        )

    def _refuses(self, record: Record, source: PeerId) -> bool:
        """True for a record that isn't to be applied, though it was decided."""
        if why := self.objection(record):
            log.warning("the record of step %d from %s is refused: %s", record.step, short(source), why)
        return bool(why)

    def fall_behind(self, why: str) -> None:
        """Gives up this peer's state: the whole must be fetched from others."""
        log.warning("%s: fetching the whole state", why)
        self.behind, self._missed = True, asyncio.get_running_loop().time()
        self.changed.notify()

    def _break(self, record: Record, trouble: NonFinite) -> None:
        """Goes one version further without a state, since this stage's parameters would not be finite: this peer knows
        the record, gives no state and takes no hops, until the swarm returns to an earlier version.
        """
        log.error("version %d of stage %d is refused here: %s", record.step, self._stage, trouble)
        self.ready, self.broken = False, record.step
        self._enter(record, "")

    def end(self, record: Record) -> None:
        """Ends the run, by a record that says so."""
        self.ended = self.returned = record
        self.changed.notify()

    def _enter(self, record: Record, digest: str) -> None:
        """Is at a record's version, with parameters of this digest, and tells the listeners."""
        self.chain.append(record)
        self.digest, self.entered = digest, asyncio.get_running_loop().time()
        if not self.broken:
            self.ledger.append(record, self._stage, digest)
            self.checkpointed |= is_checkpointed(self._run, record)
        for listener in self._listeners:
            self._links.fence.call(listener.on_record, record)
        self.changed.notify()
