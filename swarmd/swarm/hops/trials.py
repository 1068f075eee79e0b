"""Trials: the hops of peers that have done no work yet.

A newcomer gets one hop, until it has answered that: nothing else shows that it works. Anybody can bring many newcomers,
so where others of the stage have worked, all newcomers together get a share of the hops that are away. Pure; knows
nothing of messages.
"""

from collections.abc import Collection, Mapping

from swarmd.values import PeerId

TRIAL_SECONDS = 10.0  # after which a hop that its newcomer keeps holds up other newcomers no more
FRESH_SHARE = 4  # newcomers' hops of the last TRIAL_SECONDS are at most one of so many that are away; one in any case
KEPT_SHARE = 2  # ... and all that newcomers have are at most one of so many; two in any case


def plan_trials(new: Collection[PeerId], held: Mapping[PeerId, float], away: int, *, alone: bool) -> set[PeerId]:
    """The newcomers of a stage that may have a hop now.

    `new`: all of them; `held`: seconds for which the newest hop of each peer has been with it; `away`: hops that are
    with anybody of the stage; `alone`: nobody of the stage has worked.
    """
    kept = [held[peer] for peer in new if peer in held]
    fresh = sum(seconds < TRIAL_SECONDS for seconds in kept)
    if not alone and (fresh >= max(1, away // FRESH_SHARE) or len(kept) >= max(2, away // KEPT_SHARE)):
        return set()
    return {peer for peer in new if peer not in held}
