"""The kinds of trouble and what each costs. A bug of ours is an `assert`; everything else is one of these.

Relies on nothing. Every message is one sentence that says what to do or what happened; no traceback is shown to a user.
"""

import re


class SwarmError(Exception):
    """Base of everything swarmd raises on purpose."""


class ConfigError(SwarmError):
    """The user must change something (a setting, a file, an address). Exit code 2."""


class ControlError(SwarmError):
    """A command to the daemon can't be carried out: no daemon, wrong state, unknown stage. Exit code 2."""


class PeerFault(SwarmError):
    """A peer sent what no honest peer sends (malformed, oversized, unknown kind). Costs that peer its connection."""


class PeerUnreachable(SwarmError):
    """The peer is gone, can't be dialled, or the connection broke before an answer came."""


class WrongPeer(PeerUnreachable):
    """Another peer answers at the peer's address."""


class Refused(SwarmError):
    """The peer understood the request and said no, with a sentence: other run, other history, nothing to give."""


class HopGivenUp(Refused):
    """The holder has given the hop up, as its custodian wanted. That says nothing against the holder."""

    SENTENCE = "the hop was given up here"

    def __init__(self) -> None:
        super().__init__(self.SENTENCE)


class Overruled(Refused):
    """Another leader has the round. A leader that is told so gives up."""

    OPENING = "another leader has the round"

    def __init__(self, which: str) -> None:
        super().__init__(f"{self.OPENING}: {which}")


class Outvoted(Overruled):
    """A higher ballot than the asker's was heard: its conductor needs one above that."""

    WHY = "its ballot is {asked}, and {heard} was heard here"
    WORDS = re.compile(r"its ballot is ([0-9]{1,13}), and ([0-9]{1,13}) was heard here")  # no honest number is longer

    def __init__(self, asked: int, heard: int) -> None:
        super().__init__(self.WHY.format(asked=asked, heard=heard))
        self.asked, self.heard = asked, heard


def refusal_of(sentence: str) -> Refused:
    """A peer's no. The wire carries its sentence only, so this is where the kind of a refusal is told from the words:
    the ones above are part of the protocol. Nothing else may look at a text to decide what to do.
    """
    opening, _, rest = sentence.partition(": ")
    if opening == HopGivenUp.SENTENCE:
        return HopGivenUp()
    if opening == Overruled.OPENING:
        numbers = Outvoted.WORDS.fullmatch(rest)
        return Outvoted(*map(int, numbers.groups())) if numbers is not None else Overruled(rest)
    return Refused(sentence)


class Mismatch(Refused):
    """The peer is of another version or another run: only a person can change that, so asking again is of no use."""


NO_ANSWER = (PeerUnreachable, TimeoutError, Refused, PeerFault)
"""Errors that `Links.ask` raises when no answer comes. To most callers all four mean: ask another peer, or later."""


class GaveUp(SwarmError):
    """The time that the user gave for a wait is over. Exit code 1."""


class NonFinite(SwarmError):
    """A number is an infinity or NaN, or too large to travel; nothing of it was accumulated."""

    def __init__(self, sentence: str, what: str = "number", source: int | None = None) -> None:
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
