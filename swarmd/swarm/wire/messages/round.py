"""A round: the sums of a stage's replicas become one gradient."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from swarmd.swarm.wire.bounds import AtMost
from swarmd.swarm.wire.messages.common import ANY_STAGE, NO_BALLOT, Ballot, Request
from swarmd.swarm.wire.messages.fields import (
    LARGE_BYTES,
    PARTS_LIMIT,
    PEERS_LIMIT,
    SETS_BYTES,
    WORDS_BYTES,
    Amount,
    Attempt,
    Count,
    Hash,
    LossSum,
    PartNumber,
    Peer,
    Peers,
    Ranges,
    SquaredNorm,
    Stage,
    Step,
    Tally,
    Tensor,
    Word,
)
from swarmd.swarm.wire.messages.hop import NOBODY, Blame


@dataclass(frozen=True)
class StageReport:
    """Leader to conductor: the stage's part of the record to be."""

    header_bytes: ClassVar[int] = SETS_BYTES
    stage: Stage
    digest: Hash
    squared_norm: SquaredNorm
    tokens: Count
    loss_sum: Amount
    microbatches: Count  # distinct indices in the sum
    resent: Count
    lost: Count
    duplicated: Count
    finite: bool
    members: Peers
    holders: Peers  # members that have the whole result
    subtracted: Count = 0
    blame: Blame = NOBODY  # unless `finite`


@dataclass(frozen=True)
class Close(Request[StageReport]):
    """Conductor to a round leader: all indices are done, average."""

    header_bytes: ClassVar[int] = WORDS_BYTES
    step: Step
    record_hash: Hash
    ballot: Ballot = NO_BALLOT
    stage: Stage = ANY_STAGE  # whose round it is
    blame: Blame = NOBODY  # why there is nothing to be averaged: the step is to be skipped


@dataclass(frozen=True)
class Appointment:
    """The conductor's answer: whether it has asked that peer."""

    header_bytes: ClassVar[int] = WORDS_BYTES
    appointed: bool


@dataclass(frozen=True)
class AskAppointment(Request[Appointment]):
    """To the conductor of a step: have you asked this peer to lead the stage's round? Asked about one that is no member
    of the stage in the last record.
    """

    header_bytes: ClassVar[int] = WORDS_BYTES
    step: Step
    stage: Stage
    leader: Peer


@dataclass(frozen=True)
class AveragedPart:
    """An averaged part that a member has from an attempt before: it needn't be exchanged again."""

    start: Count
    stop: Count
    digest: Hash


@dataclass(frozen=True)
class OpenPart:
    """A part that its owner hasn't averaged yet."""

    number: PartNumber  # in the plan
    given: Ranges  # places, in the plan's members, of those whose contributions are in


@dataclass(frozen=True)
class Standing:
    """The state of an attempt at a member."""

    attempt: Attempt = ""  # none, if empty
    has: Ranges = ()  # numbers of the parts whose averages are here
    open: Annotated[tuple[OpenPart, ...], AtMost(PARTS_LIMIT)] = ()  # of this member's own parts


NO_STANDING = Standing()


@dataclass(frozen=True)
class Holdings:
    """The contents of a member's sum."""

    header_bytes: ClassVar[int] = LARGE_BYTES
    indices: Ranges
    under_way: Ranges  # indices on their way into the sum
    loss_sum: LossSum  # tail only, else 0
    resent: Tally
    finite: bool  # no hop of the step was answered with NotFinite
    subtracted: Tally = 0
    parts: Annotated[tuple[AveragedPart, ...], AtMost(PARTS_LIMIT)] = ()
    thaws: Count = 0  # how often the sum took in hops again: a plan is for one and the same sum
    blame: Blame = NOBODY  # unless `finite`
    standing: Standing = NO_STANDING  # said in answer to `Freeze.watch`


@dataclass(frozen=True)
class AskHoldings(Request[Holdings]):
    """Leader to a member: which indices are in your sum so far? Nothing is frozen yet."""

    header_bytes: ClassVar[int] = SETS_BYTES
    step: Step
    record_hash: Hash
    ballot: Ballot = NO_BALLOT
    stage: Stage = ANY_STAGE  # whose sum is meant
    spared: Ranges = ()  # in others' sums: what is under way with these here needn't be finished
    blame: Blame = NOBODY  # for a number that isn't finite: the step will be skipped, and this settles the round


@dataclass(frozen=True)
class Freeze(Request[Holdings]):
    """Leader to a member: accumulate no more."""

    header_bytes: ClassVar[int] = WORDS_BYTES
    step: Step
    record_hash: Hash
    ballot: Ballot = NO_BALLOT
    stage: Stage = ANY_STAGE  # whose sum is meant
    watch: bool = False  # to see whether the device answers, and how the attempt stands: what is averaged here needn't
    # be named


@dataclass(frozen=True)
class Subtract(Request[Holdings]):
    """Leader to a member: others count for these indices; take your share of them out of your sum. It answers
    when that is done; a member that refuses is left out of the round.
    """

    header_bytes: ClassVar[int] = SETS_BYTES
    step: Step
    record_hash: Hash
    indices: Ranges
    ballot: Ballot = NO_BALLOT
    stage: Stage = ANY_STAGE  # whose sum is meant


@dataclass(frozen=True)
class Resent:
    """The indices that are on their way again."""

    header_bytes: ClassVar[int] = SETS_BYTES
    indices: Ranges
    blame: Blame = NOBODY  # for one of them that never comes, since its numbers are not finite


@dataclass(frozen=True)
class Resend(Request[Resent]):
    """Leader of a stage's round to a peer of the stage before: these indices are in no member's sum. A peer that
    has one of them sends it to one of the members. At the first stage, to a member: train them.
    """

    header_bytes: ClassVar[int] = SETS_BYTES
    step: Step
    record_hash: Hash
    indices: Ranges
    stage: Stage  # that lacks them
    members: Peers  # of that stage whose sums count
    ballot: Ballot = NO_BALLOT
    anew: bool = False  # a peer that has nothing of an index computes it from what the stages before it have


@dataclass(frozen=True)
class Part:
    """A slice [start, stop) of the flattened gradient and the member that reduces it."""

    start: Count
    stop: Count
    owner: Peer
    digest: Hash = ""  # of its averaged bytes, if the owner has them from an attempt before; else it reduces it


@dataclass(frozen=True)
class Result:
    """A member's view of the averaged gradient."""

    header_bytes: ClassVar[int] = WORDS_BYTES
    digest: Hash
    squared_norm: SquaredNorm
    blame: Blame = NOBODY  # then there is no such gradient


@dataclass(frozen=True)
class Plan(Request[Result]):
    """Leader to a member: this is the round. It answers when it holds the whole averaged gradient."""

    header_bytes: ClassVar[int] = LARGE_BYTES
    step: Step
    attempt: Attempt  # names the leader and its life, and counts its tries
    members: Peers  # contributors, in the order of the sum
    parts: Annotated[tuple[Part, ...], AtMost(PARTS_LIMIT)]
    tokens: Count  # the sum is divided by
    codec: Word  # of contributions and averaged parts
    thaws: Annotated[tuple[Count, ...], AtMost(PEERS_LIMIT)]  # of the members' sums, as they answered `Freeze`
    ballot: Ballot = NO_BALLOT
    stage: Stage = ANY_STAGE  # whose gradient it is


@dataclass(frozen=True)
class Averaged:
    """The owner's bytes: everyone decodes the same."""

    header_bytes: ClassVar[int] = WORDS_BYTES
    data: Tensor
    blame: Blame = NOBODY  # then there are none: a contribution, or what came of them, is not finite


@dataclass(frozen=True)
class Contribution(Request[Averaged]):
    """A member's sum over one part, to its owner. It answers when all members' are in. A peer that is none of
    the plan's members sends an empty tensor, just for the answer.
    """

    header_bytes: ClassVar[int] = WORDS_BYTES
    step: Step
    attempt: Attempt
    part: PartNumber  # number in the plan
    data: Tensor
