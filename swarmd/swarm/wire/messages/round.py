"""A round: the sums of a stage's replicas become one gradient."""

from dataclasses import dataclass

from swarmd.swarm.wire.messages.common import ANY_STAGE, NO_BALLOT, Ballot, Ranges, Request
from swarmd.swarm.wire.messages.hop import NOBODY, Blame
from swarmd.values import Encoded, PeerId


@dataclass(frozen=True)
class StageReport:
    """Leader to conductor: the stage's part of the record to be."""

    stage: int
    digest: str
    squared_norm: float
    tokens: int
    loss_sum: float
    microbatches: int  # distinct indices in the sum
    resent: int
    lost: int
    duplicated: int
    finite: bool
    members: tuple[PeerId, ...]
    holders: tuple[PeerId, ...]  # members that have the whole result
    subtracted: int = 0
    blame: Blame = NOBODY  # unless `finite`


@dataclass(frozen=True)
class Close(Request[StageReport]):
    """Conductor to a round leader: all indices are done, average."""

    step: int
    record_hash: str
    ballot: Ballot = NO_BALLOT
    stage: int = ANY_STAGE  # whose round it is
    blame: Blame = NOBODY  # why there is nothing to be averaged: the step is to be skipped


@dataclass(frozen=True)
class AveragedPart:
    """An averaged part that a member has from an attempt before: it needn't be exchanged again."""

    start: int
    stop: int
    digest: str


@dataclass(frozen=True)
class OpenPart:
    """A part that its owner hasn't averaged yet."""

    number: int  # in the plan
    given: Ranges  # places, in the plan's members, of those whose contributions are in


@dataclass(frozen=True)
class Standing:
    """The state of an attempt at a member."""

    attempt: str = ""  # none, if empty
    has: Ranges = ()  # numbers of the parts whose averages are here
    open: tuple[OpenPart, ...] = ()  # of this member's own parts


NO_STANDING = Standing()


@dataclass(frozen=True)
class Holdings:
    """The contents of a member's sum."""

    indices: Ranges
    under_way: Ranges  # indices on their way into the sum
    loss_sum: float  # tail only, else 0
    resent: int
    finite: bool  # no hop of the step was answered with NotFinite
    subtracted: int = 0
    parts: tuple[AveragedPart, ...] = ()
    thaws: int = 0  # how often the sum took in hops again: a plan is for one and the same sum
    blame: Blame = NOBODY  # unless `finite`
    standing: Standing = NO_STANDING  # said in answer to `Freeze.watch`


@dataclass(frozen=True)
class AskHoldings(Request[Holdings]):
    """Leader to a member: which indices are in your sum so far? Nothing is frozen yet."""

    step: int
    record_hash: str
    ballot: Ballot = NO_BALLOT
    stage: int = ANY_STAGE  # whose sum is meant
    spared: Ranges = ()  # in others' sums: what is under way with these here needn't be finished
    blame: Blame = NOBODY  # for a number that isn't finite: the step will be skipped, and this settles the round


@dataclass(frozen=True)
class Freeze(Request[Holdings]):
    """Leader to a member: accumulate no more."""

    step: int
    record_hash: str
    ballot: Ballot = NO_BALLOT
    stage: int = ANY_STAGE  # whose sum is meant
    watch: bool = False  # to see whether the device answers, and how the attempt stands: what is averaged here needn't
    # be named


@dataclass(frozen=True)
class Subtract(Request[Holdings]):
    """Leader to a member: others count for these indices; take your share of them out of your sum. It answers
    when that is done; a member that refuses is left out of the round.
    """

    step: int
    record_hash: str
    indices: Ranges
    ballot: Ballot = NO_BALLOT
    stage: int = ANY_STAGE  # whose sum is meant


@dataclass(frozen=True)
class Resent:
    """The indices that are on their way again."""

    indices: Ranges
    blame: Blame = NOBODY  # for one of them that never comes, since its numbers are not finite


@dataclass(frozen=True)
class Resend(Request[Resent]):
    """Leader of a stage's round to a peer of the stage before: these indices are in no member's sum. A peer that
    has one of them sends it to one of the members. At the first stage, to a member: train them.
    """

    step: int
    record_hash: str
    indices: Ranges
    stage: int  # that lacks them
    members: tuple[PeerId, ...]  # of that stage whose sums count
    ballot: Ballot = NO_BALLOT
    anew: bool = False  # a peer that has nothing of an index computes it from what the stages before it have


@dataclass(frozen=True)
class Part:
    """A slice [start, stop) of the flattened gradient and the member that reduces it."""

    start: int
    stop: int
    owner: PeerId
    digest: str = ""  # of its averaged bytes, if the owner has them from an attempt before; else it reduces it


@dataclass(frozen=True)
class Result:
    """A member's view of the averaged gradient."""

    digest: str
    squared_norm: float
    blame: Blame = NOBODY  # then there is no such gradient


@dataclass(frozen=True)
class Plan(Request[Result]):
    """Leader to a member: this is the round. It answers when it holds the whole averaged gradient."""

    step: int
    attempt: str  # names the leader and its life, and counts its tries
    members: tuple[PeerId, ...]  # contributors, in the order of the sum
    parts: tuple[Part, ...]
    tokens: int  # the sum is divided by
    codec: str  # of contributions and averaged parts
    ballot: Ballot = NO_BALLOT
    thaws: tuple[int, ...] = ()  # of the members' sums, as they answered `Freeze`
    stage: int = ANY_STAGE  # whose gradient it is


@dataclass(frozen=True)
class Averaged:
    """The owner's bytes: everyone decodes the same."""

    data: Encoded
    blame: Blame = NOBODY  # then there are none: a contribution, or what came of them, is not finite


@dataclass(frozen=True)
class Contribution(Request[Averaged]):
    """A member's sum over one part, to its owner. It answers when all members' are in. A peer that is none of
    the plan's members sends an empty tensor, just for the answer.
    """

    step: int
    attempt: str
    part: int  # number in the plan
    data: Encoded
