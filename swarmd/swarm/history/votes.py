"""The acceptors' votes for a record: what a peer itself has said, and when others' words make a record decided.

Nothing is signed, so a record that comes from somebody is no proof: a peer applies it only once the acceptors that its
parent names have said that they accepted it, or know that it is decided. Pure; `confirmation.py` asks them.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import TypeVar

from swarmd.swarm.history.consensus import is_majority
from swarmd.swarm.wire.messages.common import Ballot

K = TypeVar("K")

VOTES_KEPT = 64  # one a step is usual; late peers ask for older ones, and are told then that the record is decided
DECIDED_KEPT = 16  # records that are known to be decided, and not applied yet


class OwnVotes:
    """The records that this peer has accepted, and those that it knows to be decided. What it accepted it did accept,
    whatever becomes of its state: so nothing of this is forgotten but by age.
    """

    def __init__(self) -> None:
        self._accepted: OrderedDict[tuple[str, Ballot], None] = OrderedDict()
        self._decided: OrderedDict[str, None] = OrderedDict()

    def accept(self, record_hash: str, ballot: Ballot) -> None:
        """Notes that this peer, as an acceptor, has accepted a record under a ballot."""
        _keep(self._accepted, (record_hash, ballot), VOTES_KEPT)

    def learn(self, record_hash: str) -> None:
        """Notes that a record is decided."""
        _keep(self._decided, record_hash, DECIDED_KEPT)

    def accepted(self, record_hash: str, ballot: Ballot) -> bool:
        """True if this peer accepted the record under this very ballot: another one's majority is another one."""
        return (record_hash, ballot) in self._accepted

    def decided(self, record_hash: str) -> bool:
        """True if this peer has learned that the record is decided."""
        return record_hash in self._decided


@dataclass(frozen=True)
class Tally:
    """The words about one record, as one peer has them."""

    acceptors: int  # of the step
    ayes: int  # of these: accepted it, or know that it is decided
    speaking: int  # of the acceptors: can speak for the step, and did
    others: int  # of these, without this peer
    others_ayes: int  # of these: accepted it, or know
    witnessed: bool  # a member of the record before knows that it is decided
    forked: bool  # it was decided without a majority
    torn: bool  # a stage has gone on with it as a whole: nobody can do the step without it any more
    alone_s: float  # for which this peer has not reached a majority that can speak
    bound_s: float  # the same for a majority that can still decide otherwise
    doubt_s: float  # for which the record couldn't be confirmed


def is_confirmed(tally: Tally, fork_timeout_s: float) -> bool:
    """True if a record is to be believed.

    A majority of the acceptors is proof. Where some of them have died since they decided, the word of those that are
    left must do; and where for `fork_timeout_s` no majority can be reached, a member's word, as for a record that was
    decided without one. A forked record is not followed by a peer that reaches a majority, unless that can't go on: a
    stage is past the step, or those of the acceptors who are not are no majority any more.
    """
    if is_majority(tally.ayes, tally.acceptors):
        return True
    if not tally.witnessed:
        return False
    if tally.alone_s >= fork_timeout_s:
        return True
    if tally.forked:
        return (tally.torn or tally.bound_s >= fork_timeout_s) and tally.doubt_s >= fork_timeout_s
    few = not is_majority(tally.speaking, tally.acceptors)
    return tally.doubt_s >= fork_timeout_s or (few and (2 * tally.others_ayes > tally.others or not tally.others))


def _keep(kept: "OrderedDict[K, None]", key: K, limit: int) -> None:
    kept[key] = None
    kept.move_to_end(key)
    while len(kept) > limit:
        kept.popitem(last=False)
