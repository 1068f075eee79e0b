"""A step's microbatches: their leases, and who gives them."""

from dataclasses import dataclass
from typing import ClassVar

from swarmd.swarm.wire.messages.common import Ack, Ballot, Request
from swarmd.swarm.wire.messages.fields import SETS_BYTES, WORDS_BYTES, Count, Hash, Incarnation, Ranges, Seconds, Step
from swarmd.swarm.wire.messages.hop import NOBODY, Blame


@dataclass(frozen=True)
class Lease:
    """Indices to train. Empty: nothing to give at present."""

    header_bytes: ClassVar[int] = SETS_BYTES
    step: Step
    indices: Ranges
    again: bool  # they were given to another head before
    horizon_s: Seconds = 0.0  # about so long until the step's last index is given; 0: unknown


@dataclass(frozen=True)
class AskLease(Request[Lease]):
    """A head reports finished indices and asks for more. The answer may take a while."""

    header_bytes: ClassVar[int] = SETS_BYTES
    step: Step
    record_hash: Hash
    want: Count
    completed: Ranges  # everything it has finished in this step
    leased: Ranges  # everything it is working on
    passed_on: Ranges = ()  # of these, what is with the next stage: another head could not hasten it
    blame: Blame = NOBODY  # for one of the completed ones, whose numbers are not finite: the step is to be skipped


@dataclass(frozen=True)
class Revoke(Request[Ack]):
    """Conductor to a head: another has completed these indices first; stop working on them."""

    header_bytes: ClassVar[int] = SETS_BYTES
    step: Step
    indices: Ranges


@dataclass(frozen=True)
class TookOver(Request[Ack]):
    """A conductor that took over to everyone: from now on this step is led under this ballot."""

    header_bytes: ClassVar[int] = WORDS_BYTES
    step: Step
    record_hash: Hash  # before it
    ballot: Ballot
    incarnation: Incarnation  # of the conductor: when it has been started anew it leads no longer
