"""Prepare and Accept between peers: this peer as an acceptor of a step, and as the conductor who asks acceptors.

The rules are in `consensus.py`. An acceptor has no disk to remember its word on: it gives it only in the incarnation
that took part in the round before (nobody else can be among the acceptors that counted then), or that founded the run.
Without a majority, but with every stage at hand for long enough, a conductor goes on with the acceptors it reaches, and
the record is marked as forked.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from swarmd.config import RunConfig
from swarmd.errors import OutOfRange, PeerFault, Refused, SwarmError
from swarmd.swarm.history.consensus import (
    Acceptor,
    BallotRange,
    decided_in,
    highest_ballot,
    is_majority,
    plan_acceptors,
    plan_proposal,
)
from swarmd.swarm.history.history import History
from swarmd.swarm.history.record import Record, is_of_now
from swarmd.swarm.history.record_codec import UNREADABLE, record_from_raw
from swarmd.swarm.membership.table import Membership
from swarmd.swarm.wire.links import Links
from swarmd.swarm.wire.messages.commit import Accept, Accepted, Prepare, Promise
from swarmd.swarm.wire.messages.common import NO_BALLOT, Ballot, Request
from swarmd.swarm.wire.messages.fields import BALLOT_LIMIT
from swarmd.values import Buffer, PeerId, short

log = logging.getLogger(__name__)

ANSWER_SECONDS = 5.0  # for an acceptor, who only looks into its memory, to answer
RETRY_SECONDS = 0.5
MEMORIES = 8  # histories of the next steps that an acceptor speaks for; one is usual, more are made up
SLEPT_SECONDS = 15.0  # between two looks at the acceptors: this peer was stopped, and knows nothing of the others

A = TypeVar("A", Promise, Accepted)


class Outranked(SwarmError):
    """Someone else leads this step under a higher ballot, of this number if it is known."""

    def __init__(self, sentence: str, number: int = 0) -> None:
        super().__init__(sentence)
        self.number = number


@dataclass(frozen=True)
class Mandate:
    """The right to propose a step's record."""

    step: int
    parent: str
    ballot: Ballot
    acceptors: tuple[PeerId, ...]
    forked: bool  # fewer than a majority gave it
    bound: Record | None  # what must be proposed; None: whatever the step brings
    decided: Record | None  # the step is over: this is its record, as one says
    teller: PeerId = ""  # who says so

    @property
    def fresh(self) -> bool:
        """True if nobody led this step before."""
        return self.ballot.number == 1 and not self.forked


@dataclass(frozen=True)
class Decision:
    """A record as it was decided."""

    record: Record
    voters: tuple[PeerId, ...]  # acceptors that accepted it


class Alone:
    """The time during which, without a break, those that are needed haven't answered although everybody was there: no
    majority of acceptors, or no head.
    """

    def __init__(self) -> None:
        self._since: float | None = None
        self._looked = 0.0

    def seconds(self, now: float, *, complete: bool) -> float:
        """Takes in a look that found no answer; `complete`: everybody was there. Returns the time so far."""
        if not complete or self._since is None or now - self._looked > SLEPT_SECONDS:
            self._since = now
        self._looked = now
        return now - self._since if complete else 0.0


class Ballots:
    """This peer's part in deciding records."""

    def __init__(
        self,
        run: RunConfig,
        links: Links,
        membership: Membership,
        history: History,
        rng: random.Random,
        fork_timeout_s: float,
    ) -> None:
        self._run, self._links, self._membership, self._history = run, links, membership, history
        self._rng, self._fork_timeout_s = rng, fork_timeout_s
        self._memory: dict[tuple[int, str], Acceptor] = {}  # (step, parent) -> what this acceptor said
        self._seen = BallotRange()  # the numbers seen, by step
        self.waiting = ""  # for which acceptors, in words
        links.handle(Prepare, self._answer_prepare)
        links.handle(Accept, self._answer_accept)

    # ---------------------------------------------------------------------------------------------- acceptor

    async def _answer_prepare(self, peer: PeerId, ask: Prepare) -> Promise:
        _check_ballot(peer, ask.ballot)
        returned = self._history.returned
        if returned is not None and returned.follows(ask.step, ask.parent_hash):
            return Promise(False, NO_BALLOT, NO_BALLOT, returned.raw)
        if self._history.version >= ask.step:
            record = self._history.chain.at(ask.step)
            if record is None or record.parent != ask.parent_hash:
                raise Refused(f"step {ask.step} is over, or another history's")
            return Promise(False, NO_BALLOT, NO_BALLOT, record.raw)
        return self._acceptor(ask.step, ask.parent_hash).prepare(ask.ballot)

    async def _answer_accept(self, peer: PeerId, ask: Accept) -> Accepted:
        _check_ballot(peer, ask.ballot)
        record = record_from_raw(self._run, ask.record)
        if not record.follows(ask.step, ask.parent_hash) or not is_of_now(self._run, record):
            raise PeerFault("a record of another step than it was proposed for")
        if self._history.version >= ask.step:
            raise Refused(f"step {ask.step} is over")
        if why := self._history.objection(record):
            log.warning("%s proposes a record of step %d that is refused: %s", short(peer), ask.step, why)
            raise Refused(f"the record of step {ask.step}: {why}")
        accepted = self._acceptor(ask.step, ask.parent_hash).accept(ask.ballot, record.raw)
        if accepted.granted:
            self._history.votes.accept(record.hash, ask.ballot)
        return accepted

    def _acceptor(self, step: int, parent: str) -> Acceptor:
        """This peer's memory of a step it may speak for. It may while it still applies the record before. Raises
        Refused.
        """
        history = self._history
        if history.version == step - 1 and history.record_hash != parent:
            raise Refused(f"another history: its version {step - 1} is not ours")
        if history.crosses_at is not None or not history.contributed(step - 1):
            raise Refused(f"this peer took no part in step {step - 1} and can't speak for step {step}")
        self._memory = {key: it for key, it in self._memory.items() if key[0] > history.version}
        if (step, parent) not in self._memory and len(self._memory) >= MEMORIES:
            raise Refused("this acceptor speaks for too many histories already")
        return self._memory.setdefault((step, parent), Acceptor())

    def forget(self) -> None:
        """Ends this peer's part as an acceptor of the present step: it has another state than the one it spoke for."""
        self._memory.clear()

    # ---------------------------------------------------------------------------------------------- proposer

    async def seek(self, step: int, complete: Callable[[], bool]) -> Mandate:
        """Asks the step's acceptors for the right to propose, until enough of them give it. `complete`: every stage is
        there. Raises Outranked when someone who is alive has it.
        """
        loop, alone, own = asyncio.get_running_loop(), Alone(), self._membership.own.peer
        parent = self._history.record_hash
        try:
            while True:
                acceptors = plan_acceptors(step, self._history.record, self._history.origin.founder)
                ballot = Ballot(self._next_number(step, parent), own)
                answers = await self._poll(acceptors, Prepare(step, parent, ballot), self._is_readable)
                granted = [it for it in answers.values() if it.granted]
                higher = self._note(step, highest_ballot(answers.values()))
                forked = not is_majority(len(granted), len(acceptors))
                teller, said = decided_in(answers)
                decided = self._record(step, parent, said)
                if decided is None and forked:
                    self._check_rank(step, higher)
                    self.waiting = _waiting(step, len(answers), len(acceptors))
                    if alone.seconds(loop.time(), complete=complete()) < self._fork_timeout_s:
                        await asyncio.sleep(RETRY_SECONDS * (0.5 + self._rng.random()))
                        continue
                    log.warning("step %d goes on with %d of %d acceptors", step, len(granted), len(acceptors))
                bound = self._record(step, parent, plan_proposal(granted))
                return Mandate(step, parent, ballot, acceptors, forked, bound, decided, teller)
        finally:
            self.waiting = ""

    def _next_number(self, step: int, parent: str) -> int:
        """Above all that this peer has seen for the step, as an acceptor, too."""
        acceptor = self._memory.get((step, parent), Acceptor())
        number = max(self._seen.highest.get(step, 0), acceptor.promised.number) + 1
        self.see(step, number)
        return number

    def see(self, step: int, number: int) -> None:
        """Somebody leads a step under a ballot of this number: this peer's next one is above it. Not only acceptors
        know of ballots: a conductor without a majority of them leads under one that none of them has heard of. Of a
        number that nobody can have reached it goes up by one reach.
        """
        if number < BALLOT_LIMIT - 1:
            self._seen.admits(step, number, self._history.version)

    def _note(self, step: int, ballot: Ballot) -> Ballot:
        """Remembers the highest number seen, so that the next ballot is above it."""
        self.see(step, ballot.number)
        return ballot

    def _check_rank(self, step: int, higher: Ballot) -> None:
        """Gives way to someone alive who leads the step. Raises Outranked."""
        if higher.peer not in ("", self._membership.own.peer) and self._membership.is_live(higher.peer):
            raise Outranked(f"{short(higher.peer)} leads step {step} under ballot {higher.number}")

    def _is_readable(self, promise: Promise) -> bool:
        """False for an answer with a record that can't be read here: it may have been decided, so to go on as if there
        were none would be to decide another one. Who gives it hasn't answered.
        """
        if not promise.record:
            return promise.accepted == NO_BALLOT
        try:
            record_from_raw(self._run, promise.record)
        except UNREADABLE as trouble:
            log.warning("an acceptor's answer doesn't count: %s", trouble)
            return False
        return True

    def _record(self, step: int, parent: str, raw: Buffer) -> Record | None:
        """A record that an acceptor gave, and that can be read. None if it gave none, or one that doesn't fit."""
        if not raw:
            return None
        record = record_from_raw(self._run, raw)
        return record if record.follows(step, parent) and is_of_now(self._run, record) else None

    async def propose(self, mandate: Mandate, record: Record, complete: Callable[[], bool]) -> Decision:
        """Has the acceptors accept a record; returns it as decided. Raises Outranked when a higher ballot is about."""
        loop, alone = asyncio.get_running_loop(), Alone()
        ballot, total = mandate.ballot, len(mandate.acceptors)
        record = record.under((ballot.number, ballot.peer), forked=mandate.forked)
        question = Accept(mandate.step, mandate.parent, ballot, record.raw)
        try:
            while True:
                answers = await self._poll(mandate.acceptors, question)
                voters = tuple(peer for peer, it in answers.items() if it.granted)
                higher = self._note(mandate.step, highest_ballot(answers.values()))
                if mandate.forked and is_majority(len(answers), total):
                    raise Outranked(f"the acceptors of step {mandate.step} answer again")  # no reason to fork any more
                if mandate.forked and higher == NO_BALLOT:
                    return self._decide(record, voters)
                if not mandate.forked and is_majority(len(voters), total):
                    return self._decide(record, voters)
                if higher != NO_BALLOT:
                    raise Outranked(f"{short(higher.peer)} leads step {mandate.step} under ballot {higher.number}")
                self.waiting = _waiting(mandate.step, len(answers), total)
                if alone.seconds(loop.time(), complete=complete()) >= self._fork_timeout_s:
                    log.warning("step %d is decided by %d of %d acceptors", mandate.step, len(voters), total)
                    return self._decide(record.under(record.ballot, forked=True), voters)
                await asyncio.sleep(RETRY_SECONDS)
        finally:
            self.waiting = ""

    def _decide(self, record: Record, voters: tuple[PeerId, ...]) -> Decision:
        """A record is decided, by this peer's own count."""
        self._history.votes.learn(record.hash)
        return Decision(record, voters)

    async def _poll(
        self, peers: tuple[PeerId, ...], question: Request[A], counts: Callable[[A], bool] = lambda answer: True
    ) -> dict[PeerId, A]:
        """Asks everyone, and waits for no more answers than make a majority of yes, or rule it out. `counts`: tells
        which answers are any.
        """
        tasks = [
            asyncio.create_task(self._links.tell_all([peer], question, deadline_s=ANSWER_SECONDS)) for peer in peers
        ]
        answers: dict[PeerId, A] = {}
        try:
            for done in asyncio.as_completed(tasks):
                answers.update({peer: it for peer, it in (await done).items() if counts(it)})
                granted = sum(1 for it in answers.values() if it.granted)
                refused = len(answers) - granted
                if is_majority(granted, len(peers)) or not is_majority(len(peers) - refused, len(peers)):
                    break
            return answers
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _check_ballot(peer: PeerId, ballot: Ballot) -> None:
    """Raises PeerFault for a ballot in somebody else's name, OutOfRange for one without room above."""
    if ballot.peer != peer:
        raise PeerFault("a ballot that is not its own")
    if not 0 < ballot.number < BALLOT_LIMIT:
        raise OutOfRange(f"ballot {ballot.number} is not from 1 to {BALLOT_LIMIT - 1}")


def _waiting(step: int, answering: int, acceptors: int) -> str:
    return f"a majority of the acceptors of step {step}: {answering} of {acceptors} answer"
