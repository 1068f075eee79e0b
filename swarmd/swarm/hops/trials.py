"""Trials: the hops of peers that have done no work yet.

A newcomer gets one hop, until it has answered that: nothing else shows that it works. Anybody can bring many newcomers,
so where others of the stage have worked, all newcomers together get a share of the hops that are away, and none for a
while after one of them failed. Knows nothing of messages; the caller passes the time.
"""

from collections.abc import Collection, Mapping

from swarmd.values import PeerId

TRIAL_SECONDS = 10.0  # after which a hop that its newcomer keeps holds up other newcomers no more
FRESH_SHARE = 4  # newcomers' hops of the last TRIAL_SECONDS are at most one of so many that are away; one in any case
KEPT_SHARE = 2  # ... and all that newcomers have are at most one of so many; two in any case
PAUSE_SECONDS = 2.0  # without a trial after one that failed; doubles with each that fails in a row
PAUSE_CEILING_SECONDS = 60.0


class Trials:
    """The trials of one stage's newcomers, at one custodian."""

    def __init__(self) -> None:
        self._failures = 0  # in a row
        self._next = 0.0  # loop time before which there is no other

    def failed(self, now: float) -> None:
        """A newcomer didn't do what it was given."""
        self._next = now + min(PAUSE_CEILING_SECONDS, PAUSE_SECONDS * 2.0 ** min(self._failures, 30))
        self._failures += 1

    def passed(self) -> None:
        """A newcomer has worked."""
        self._failures, self._next = 0, 0.0

    def plan(
        self, new: Collection[PeerId], held: Mapping[PeerId, float], away: int, now: float, *, alone: bool
    ) -> set[PeerId]:
        """The newcomers of a stage that may have a hop now.

        `new`: all of them; `held`: loop time at which the last hop of each peer was sent that it has; `away`: hops that
        are with anybody of the stage; `alone`: nobody of the stage has worked.
        """
        idle = {peer for peer in new if peer not in held}
        if alone:
            return idle
        sent = [held[peer] for peer in new if peer in held]
        fresh = sum(now - at < TRIAL_SECONDS for at in sent)
        full = fresh >= max(1, away // FRESH_SHARE) or len(sent) >= max(2, away // KEPT_SHARE)
        return set() if full or now < self._next else idle
