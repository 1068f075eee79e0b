"""The kinds of trouble and what each costs. A bug of ours is an `assert`; everything else is one of these.

Relies on nothing. Every message is one sentence that says what to do or what happened; no traceback is shown to a user.
"""

from typing import ClassVar


class SwarmError(Exception):
    """Base of everything swarmd raises on purpose."""


class ConfigError(SwarmError):
    """The user must change something (a setting, a file, an address). Exit code 2."""


class ControlError(SwarmError):
    """A command to the daemon can't be carried out: no daemon, wrong state, unknown stage. Exit code 2."""


class PeerFault(SwarmError):
    """A peer sent what no honest release sends (malformed, a wrong type). Costs that peer its connection."""


class PeerUnreachable(SwarmError):
    """The peer is gone, can't be dialled, or the connection broke before an answer came."""


class WrongPeer(PeerUnreachable):
    """Another peer answers at the peer's address."""


class Refused(SwarmError):
    """The peer understood the request and said no, with a sentence: other run, other history, nothing to give."""

    code: ClassVar[str] = ""  # on the wire, of a kind that the asker tells from others; "": of no such kind
    numbers: tuple[int, ...] = ()  # that it acts upon


class HopGivenUp(Refused):
    """The holder has given the hop up, as its custodian wanted. That says nothing against the holder."""

    code = "hop_given_up"

    def __init__(self, sentence: str = "the hop was given up here") -> None:
        super().__init__(sentence)


class Overruled(Refused):
    """Another leader has the round. A leader that is told so gives up."""

    code = "overruled"


class Outvoted(Overruled):
    """A higher ballot than the asker's was heard: its conductor needs one above that."""

    code = "outvoted"

    def __init__(self, asked: int, heard: int) -> None:
        super().__init__(f"another leader has the round: its ballot is {heard}, and yours {asked}")
        self.asked, self.heard = asked, heard
        self.numbers = (asked, heard)


class OutOfRange(Refused):
    """A value lies outside of the bounds of its field: an honest peer of another release may have sent it."""

    code = "out_of_range"


class UnknownKind(Refused):
    """A kind of message that this release doesn't have: a later one may."""

    code = "unknown_kind"


class UnknownFormat(Refused):
    """A record of a format that this release doesn't have: a later one may."""

    code = "unknown_format"


class NotAllowed(Refused):
    """A request of a peer that has not the role for it (`swarmd/swarm/wire/roles.py`)."""

    code = "not_allowed"


CODES: dict[str, type[Refused]] = {
    kind.code: kind for kind in (HopGivenUp, Overruled, Outvoted, OutOfRange, UnknownKind, UnknownFormat, NotAllowed)
}


def refusal_of(code: str, sentence: str, numbers: tuple[int, ...] = ()) -> Refused:
    """A peer's no as it came over the wire. One with a code that this release doesn't have is a plain refusal."""
    kind = CODES.get(code, Refused)
    if kind is Outvoted:
        return Outvoted(*numbers) if len(numbers) == 2 else Overruled(sentence)
    return kind(sentence)


class Mismatch(Refused):
    """The peer is of another version or another run: only a person can change that, so asking again is of no use."""


NO_ANSWER = (PeerUnreachable, TimeoutError, Refused, PeerFault)
"""Errors that `Links.ask` raises when no answer comes. To most callers all four mean: ask another peer, or later."""


class GaveUp(SwarmError):
    """The time that the user gave for a wait is over. Exit code 1."""


UNNAMED = "number"
"""The kind of a number of which only its user knows what it is."""


class NonFinite(SwarmError):
    """A number is an infinity or NaN, or too large to travel; nothing of it was accumulated."""

    def __init__(self, sentence: str, what: str = UNNAMED, source: int | None = None) -> None:
        super().__init__(sentence)
        self.what = what  # the kind of number: activation, loss, gradient, sum, average or parameters
        self.source = source  # which of the inputs brought it, by place; None: it arose here


class Stopped(SwarmError):
    """Nobody wants any more what was being done; nothing of it is left."""


class RunEnded(SwarmError):
    """The run is over before its last step, for every peer alike, and why: going on would be of no use. Exit code 1."""

    def __init__(self, sentence: str, checkpoint: int | None) -> None:
        super().__init__(sentence)
        self.checkpoint = checkpoint  # version of the last good one on this peer's disk


class HopForgotten(SwarmError):
    """The hop was cancelled before its gradient was accumulated; nothing of it was added to the step's sum."""


class DeviceLost(SwarmError):
    """This peer's device, or the thread that works with it, computes no more. The daemon says goodbye and ends with 1:
    only a new process can use the device again.
    """
