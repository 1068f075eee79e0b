"""One record is decided for each step by single-decree consensus among the acceptors of that step (Paxos; Lamport,
"Paxos Made Simple", 2001, section 2).

Pure: who the acceptors are, what an acceptor answers, what a proposer must propose. `ballots.py` carries it over the
network. Two things differ from the textbook, and both only refuse more: a promise needs a strictly higher *number* than
the one before, also where the same peer asks, so that a ballot is never granted twice, not even to a peer that has
restarted; and number 1, granted by a majority, tells a conductor that nobody has led this step before.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from swarmd.swarm.history.record import Record
from swarmd.swarm.membership.order import rendezvous
from swarmd.swarm.wire.messages.commit import Accepted, Promise
from swarmd.swarm.wire.messages.common import NO_BALLOT, Ballot
from swarmd.values import Buffer, PeerId

ACCEPTORS = 9  # five must live; more would only cost messages
BALLOT_REACH = 1 << 20  # numbers above the highest heard of for a step: a conductor that reaches no majority counts on
# by one, twice a second, so these are six days of that
STEPS_AHEAD = 2  # of a peer's version: of these it remembers numbers


def plan_acceptors(step: int, record: Record | None, founder: PeerId) -> tuple[PeerId, ...]:
    """The peers that decide a step, from the record before: its heads, who know one another in a large swarm, too, then
    the other members. All peers with the same record name the same ones. For the first step it is the run's founder.
    """
    if record is None:
        return (founder,) if founder else ()
    heads = record.stages[0].members
    others = [peer for peer in dict.fromkeys(record.members()) if peer not in heads]
    key = f"acceptor/{step}"
    return (*rendezvous(key, heads), *rendezvous(key, others))[:ACCEPTORS]


def is_majority(count: int, acceptors: int) -> bool:
    """True if so many are more than half: two such groups always share a peer."""
    return 2 * count > acceptors


@dataclass
class BallotRange:
    """The ballot numbers, by step, that an honest successor of those who were heard can have reached.

    A number above them doesn't count, and yet brings the range up by one reach: so an honest conductor that tries again
    gets through, however long it sought a majority, and a number that was made up wins no more than one that counts.
    """

    highest: dict[int, int] = field(default_factory=dict)  # step -> the highest number within reach of those before it

    def admits(self, step: int, number: int, version: int) -> bool:
        """Tells if a number counts for a step, and takes note of it. `version`: of this peer; in a step that is over
        every number counts, as none has an effect.
        """
        known = self.highest.get(step, 0)
        reached = min(number, known + BALLOT_REACH)
        if version < step <= version + STEPS_AHEAD and reached > known:
            self.highest = {it: top for it, top in self.highest.items() if it > version}
            self.highest[step] = reached
        return number <= known + BALLOT_REACH or step <= version


@dataclass
class Acceptor:
    """One acceptor's memory of one step."""

    promised: Ballot = NO_BALLOT  # nothing under a lower one is accepted any more
    accepted: Ballot = NO_BALLOT
    record: Buffer = b""  # as accepted; empty: nothing yet

    def prepare(self, ballot: Ballot) -> Promise:
        granted = ballot.number > self.promised.number
        if granted:
            self.promised = ballot
        return Promise(granted, self.promised, self.accepted, self.record)

    def accept(self, ballot: Ballot, record: Buffer) -> Accepted:
        granted = ballot == self.promised or ballot.number > self.promised.number
        if granted:
            self.promised = self.accepted = ballot
            self.record = record
        return Accepted(granted, self.promised)


def decided_in(promises: Mapping[PeerId, Promise]) -> tuple[PeerId, Buffer]:
    """The step's decided record, if one of those asked is past the step and says so, and who does: it refuses, and
    names no ballot under which it would have accepted. Empty if none does.
    """
    for peer, promise in promises.items():
        if not promise.granted and promise.accepted == NO_BALLOT and promise.record:
            return peer, promise.record
    return "", b""


def plan_proposal(promises: Iterable[Promise]) -> Buffer:
    """The record that the proposer with these promises must propose: that accepted under the highest ballot, since it
    may have been decided. Empty: it is free to propose its own.
    """
    bound = max((it for it in promises if it.granted and it.record), key=lambda it: it.accepted, default=None)
    return bound.record if bound is not None else b""


def highest_ballot(answers: Iterable[Promise | Accepted]) -> Ballot:
    """The highest ballot under which someone else was promised, by those who refused."""
    return max((it.promised for it in answers if not it.granted), default=NO_BALLOT)
