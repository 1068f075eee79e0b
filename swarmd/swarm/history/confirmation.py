"""The confirmation of records that others bring: this peer asks their acceptors, and answers when it is asked itself.

The rule is in `votes.py`. A conductor needs nobody's word for what it decided itself; all others ask as many acceptors
as make a majority with what they know already: that they accepted the record themselves, and that it was an acceptor
who brought it. So in the smallest swarms nobody is asked at all, and elsewhere a few small questions in parallel are.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field

from swarmd.errors import NO_ANSWER, Refused
from swarmd.swarm.history.consensus import ACCEPTORS, is_majority, plan_acceptors
from swarmd.swarm.history.history import History
from swarmd.swarm.history.record import Record
from swarmd.swarm.history.votes import Tally, is_confirmed
from swarmd.swarm.membership.states import AT_WORK
from swarmd.swarm.membership.table import Membership
from swarmd.swarm.tasks import start_shared
from swarmd.swarm.wire.links import Links
from swarmd.swarm.wire.messages.commit import AskVote, Vote
from swarmd.swarm.wire.messages.common import Ballot
from swarmd.values import PeerId, short

log = logging.getLogger(__name__)

VOTE_SECONDS = 5.0  # for a peer, who only looks into its memory, to answer
HEDGE_SECONDS = 1.0  # after which all acceptors are asked, and not only those that are said to have accepted
AGAIN_SECONDS = 0.5  # between two tries to confirm the same record
DOUBTS_KEPT = 8  # records that couldn't be confirmed; one is usual, more are made up


Enough = Callable[[], bool]
"""True once nobody else need be waited for."""


@dataclass
class Answers:
    """The words of acceptors, or of other peers, about a record."""

    votes: dict[PeerId, Vote] = field(default_factory=dict)
    abstaining: set[PeerId] = field(default_factory=set)  # they can't speak for the step

    def known(self) -> bool:
        """True if one of them knows that the record is decided."""
        return any(vote.decided for vote in self.votes.values())

    def take_in(self, peer: PeerId, vote: Vote | None) -> None:
        """A peer has answered; None: it abstains."""
        if vote is None:
            self.abstaining.add(peer)
        else:
            self.votes[peer] = vote

    def past(self) -> set[PeerId]:
        """Those that know that the record is decided: they decide on no other one."""
        return {peer for peer, vote in self.votes.items() if vote.decided}

    def ayes(self) -> set[PeerId]:
        """Those that accepted it, or know that it is decided."""
        return {peer for peer, vote in self.votes.items() if vote.accepted or vote.decided}


@dataclass(frozen=True)
class Doubt:
    """A record that couldn't be confirmed."""

    since: float  # loop time
    tried: float  # loop time of the last try
    source: PeerId  # who brought it then


class Confirmation:
    """This peer's way to know that a record is decided."""

    def __init__(self, links: Links, membership: Membership, history: History, stages: int, fork_timeout_s: float):
        self._links, self._membership, self._history = links, membership, history
        self._stages, self._fork_timeout_s = stages, fork_timeout_s
        self._asking: dict[tuple[str, PeerId], asyncio.Task[bool]] = {}
        self._doubts: dict[str, Doubt] = {}  # by record hash
        history.confirm = self.confirm
        links.handle(AskVote, self._answer_vote)

    def knows(self, record_hash: str) -> bool:
        """True if a record is known to be decided: it is in this peer's chain, or was confirmed."""
        return self._history.votes.decided(record_hash) or self._history.chain.has(record_hash)

    # ---------------------------------------------------------------------------------------------- answering

    async def _answer_vote(self, peer: PeerId, ask: AskVote) -> Vote:
        return self._vote(ask)

    def _vote(self, ask: AskVote) -> Vote:
        """This peer's word. Raises Refused."""
        decided = self.knows(ask.record_hash)
        accepted = self._history.votes.accepted(ask.record_hash, ask.ballot)
        if not (decided or accepted or self._speaks_for(ask.step, ask.parent_hash)):
            raise Refused(f"this peer can't speak for step {ask.step}")
        return Vote(accepted, decided)

    def _speaks_for(self, step: int, parent: str) -> bool:
        """True if this peer, as an acceptor of the step, could have accepted a record of it."""
        history = self._history
        if history.crosses_at is not None:
            return False
        if history.version < step - 1:  # it still applies the record before
            return history.contributed(step - 1)
        if history.chain.hash_at(step - 1) != parent:  # but it knows of any return that founds the run again
            return history.origin.founded
        acceptors = plan_acceptors(step, history.chain.at(step - 1), history.origin.founder)
        took_part = history.version >= step or history.contributed(step - 1)
        return took_part and self._membership.own.peer in acceptors

    # ---------------------------------------------------------------------------------------------- asking

    async def confirm(self, record: Record, source: PeerId, voters: Sequence[PeerId]) -> bool:
        """True if a record that `source` brought is to be believed. `voters` are said to have accepted it."""
        if source == self._membership.own.peer or self.knows(record.hash):
            return True
        place = (record.hash, source)
        if (task := self._asking.get(place)) is None:
            if self._is_too_soon(record, source):
                return False
            name = f"confirm {record.step}"
            task = self._asking[place] = start_shared(self._find_out(record, source, voters), name)
            task.add_done_callback(lambda _: self._asking.pop(place))
        return await asyncio.shield(task)

    def _is_too_soon(self, record: Record, source: PeerId) -> bool:
        """True if the source has just brought the record in vain, or brings many at a time."""
        doubt = self._doubts.get(record.hash)
        tried = doubt.tried if doubt is not None and doubt.source == source else -math.inf
        return self._now() - tried < AGAIN_SECONDS or any(who == source for _, who in self._asking)

    async def _find_out(self, record: Record, source: PeerId, voters: Sequence[PeerId]) -> bool:
        confirmed = await self._ask_acceptors(record, source, voters)
        now = self._now()
        if confirmed:
            self._doubts.pop(record.hash, None)
            self._history.votes.learn(record.hash)
        else:
            doubt = self._doubts.pop(record.hash, None)
            since = doubt.since if doubt is not None else now
            self._doubts[record.hash] = Doubt(since, now, source)
            while len(self._doubts) > DOUBTS_KEPT:
                del self._doubts[next(iter(self._doubts))]
            log.info("the record of step %d from %s isn't confirmed by its acceptors", record.step, short(source))
            if now - since >= self._fork_timeout_s:
                self._history.tell_foreign(source)  # else all wait for it to conduct the step, which is over for it
        return confirmed

    async def _ask_acceptors(self, record: Record, source: PeerId, voters: Sequence[PeerId]) -> bool:
        """Asks as many acceptors as it takes; the peers around where this one doesn't know who they are."""
        step, parent = record.place
        history = self._history
        if parent and history.chain.hash_at(step - 1) == parent:
            before = history.chain.at(step - 1)
        elif history.version == 0 and history.origin.resumes and record.after:
            before = None  # the run is founded again
        else:
            return await self._ask_around(_question(record), source)
        acceptors, ask = plan_acceptors(step, before, history.origin.founder), _question(record)
        answers = Answers()
        if source in acceptors:
            answers.take_in(source, Vote(accepted=False, decided=True))
        enough = await self._ask_until(ask, acceptors, voters, answers)
        known = enough or await self._is_witnessed(record, before, source, answers)
        return is_confirmed(self._tally(record, acceptors, answers, known), self._fork_timeout_s)

    async def _ask_until(
        self, ask: AskVote, acceptors: Sequence[PeerId], voters: Sequence[PeerId], answers: Answers
    ) -> bool:
        """Asks acceptors, `voters` first, until a majority has said yes. False if none does."""
        own = self._membership.own.peer
        if own in acceptors:
            answers.take_in(own, self._own_vote(ask))
        asked = {own, *answers.votes}
        others = [peer for peer in acceptors if peer not in asked and self._membership.get(peer) is not None]
        first, rest = [peer for peer in others if peer in voters], [peer for peer in others if peer not in voters]

        def enough() -> bool:
            return is_majority(len(answers.ayes()), len(acceptors))

        if not enough():
            await self._poll(ask, first, rest, answers, enough)
        return enough()

    async def denies(self, record: Record) -> bool:
        """True if a record of another history, which follows one that is in this peer's chain, can't have been decided
        by a majority: so many of its acceptors know nothing of it.
        """
        step, parent = record.place
        if not parent or self._history.chain.hash_at(step - 1) != parent:
            return False
        acceptors = plan_acceptors(step, self._history.chain.at(step - 1), self._history.origin.founder)
        answers = Answers()
        if await self._ask_until(_question(record), acceptors, (), answers):
            return False
        noes = len(answers.votes) - len(answers.ayes())
        return not is_majority(len(acceptors) - noes, len(acceptors))

    def _own_vote(self, ask: AskVote) -> Vote | None:
        try:
            return self._vote(ask)
        except Refused:
            return None

    async def _poll(
        self,
        ask: AskVote,
        first: Sequence[PeerId],
        rest: Sequence[PeerId],
        answers: Answers,
        enough: Enough,
    ) -> None:
        """Asks the first, and the rest where that isn't enough or takes long."""
        waiting = {asyncio.create_task(self._ask(peer, ask, answers)) for peer in first}
        started = waiting.copy()
        try:
            if waiting:
                await _until(enough, waiting, HEDGE_SECONDS)
            if not enough():
                more = {asyncio.create_task(self._ask(peer, ask, answers)) for peer in rest}
                started |= more
                waiting = {task for task in started if not task.done()}
                await _until(enough, waiting, None)
        finally:
            for task in started:
                task.cancel()
            await asyncio.gather(*started, return_exceptions=True)

    async def _ask(self, peer: PeerId, ask: AskVote, answers: Answers) -> None:
        try:
            async with asyncio.timeout(VOTE_SECONDS):  # over the greeting, too
                answers.take_in(peer, await self._links.ask(peer, ask, deadline_s=VOTE_SECONDS))
        except Refused:
            answers.take_in(peer, None)
        except NO_ANSWER as trouble:
            log.debug("no vote on step %d from %s: %s", ask.step, short(peer), trouble)

    async def _ask_around(self, ask: AskVote, source: PeerId) -> bool:
        """Asks everyone around, as this peer doesn't have the record before: it comes from elsewhere, or has no state.
        True if most of those who can speak for the step know the record.
        """
        around, answers = self._around(), Answers()
        if source in around:
            answers.take_in(source, Vote(accepted=False, decided=True))

        def confirmed_by(others: int) -> bool:
            return answers.known() and is_majority(len(answers.ayes()), others)

        rest = [peer for peer in around if peer != source]
        await self._poll(ask, [], rest, answers, lambda: confirmed_by(len(around)))
        return confirmed_by(len(answers.votes))

    def _around(self) -> list[PeerId]:
        """The others of this history that say that they have a state: they are at work, or have finished."""
        own = self._membership.own.peer
        return [it.peer for it in self._membership.kin() if it.peer != own and it.state in (*AT_WORK, "finished")]

    # ---------------------------------------------------------------------------------------------- judging

    async def _is_witnessed(self, record: Record, before: Record | None, source: PeerId, answers: Answers) -> bool:
        """True if one whose word counts knows that the record is decided: a member of the record before. An acceptor
        that knows has said so.
        """
        own, members = self._membership.own.peer, before.members() if before is not None else ()
        witnesses = {peer for peer in {*members} - {own} if self._membership.is_live(peer)} - answers.abstaining
        if not witnesses:
            return answers.known() or await self._is_known_around(record, source)
        if source in witnesses or answers.known():
            return True
        said = Answers()
        more = sorted(witnesses - answers.votes.keys())[:ACCEPTORS]
        await self._poll(_question(record), more, [], said, said.known)
        return said.known()

    async def _is_known_around(self, record: Record, source: PeerId) -> bool:
        """True if somebody around knows that the record is decided, and that counts: it says what came out of a round
        in which this peer took part, or a whole stage is past this version, or most of those around say so, of whom
        this peer is one. Of the members of the record before nobody is left that can speak for the step.
        """
        around, said = self._around(), Answers()
        if source in around:
            said.take_in(source, Vote(accepted=False, decided=True))
        borne_out = self._is_borne_out(record)

        def enough() -> bool:
            known = said.past()
            return bool(known) and (borne_out or self._is_left_behind() or is_majority(len(known), len(around) + 1))

        if not enough():
            await self._poll(_question(record), [], [peer for peer in around if peer != source], said, enough)
        return enough()

    def _is_borne_out(self, record: Record) -> bool:
        """True if a record is of the next step, and a round in which this peer took part came out as it says."""
        gradients, follows = self._history.gradients, record.parent == self._history.record_hash and not record.after
        return follows and gradients is not None and gradients.bears_out(record)

    def _tally(self, record: Record, acceptors: Sequence[PeerId], answers: Answers, known: bool) -> Tally:
        own, ayes = self._membership.own.peer, answers.ayes()
        doubt = self._doubts.get(record.hash)
        return Tally(
            acceptors=len(acceptors),
            ayes=len(ayes),
            speaking=len(answers.votes),
            others=len(answers.votes.keys() - {own}),
            others_ayes=len(ayes - {own}),
            witnessed=known or (record.forked and bool(ayes)),
            forked=record.forked,
            torn=self._is_torn(),
            alone_s=self._now() - self._reached_at(acceptors, answers, answers.abstaining),
            bound_s=self._now() - self._reached_at(acceptors, answers, answers.abstaining | answers.past()),
            doubt_s=self._now() - doubt.since if doubt is not None else 0.0,
        )

    def _reached_at(self, acceptors: Iterable[PeerId], answers: Answers, without: Container[PeerId]) -> float:
        """The loop time at which a majority of the acceptors was last heard of, without some of them."""
        now, members = self._now(), self._membership.members()

        def heard(peer: PeerId) -> float:
            if peer in without:
                return -math.inf
            if peer in answers.votes:
                return now
            return members[peer].heard if peer in members else -math.inf

        times = sorted(map(heard, acceptors), reverse=True)
        return times[len(times) // 2] if times else -math.inf

    def _is_left_behind(self) -> bool:
        """True if a stage has peers, and all of them are past this peer's version."""
        stages = [self._membership.stage(stage) for stage in range(self._stages)]
        return any(it and all(card.version > self._history.version for card in it) for it in stages)

    def _is_torn(self) -> bool:
        """True if all peers of a stage are past this peer's version."""
        version = self._history.version
        return any(
            all(card.version > version for card in self._membership.stage(stage)) for stage in range(self._stages)
        )

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def _question(record: Record) -> AskVote:
    """The question about a record."""
    step, parent = record.place
    return AskVote(step, parent, record.hash, Ballot(*record.ballot))


async def _until(enough: Enough, tasks: set[asyncio.Task[None]], seconds: float | None) -> None:
    """Waits for tasks until enough of them are done, all are, or the time is over."""
    try:
        async with asyncio.timeout(seconds):
            for done in asyncio.as_completed(tasks):
                await done
                if enough():
                    return
    except TimeoutError:
        return
