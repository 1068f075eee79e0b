"""The reach of a peer's knowledge of the swarm.

In a small swarm everyone knows everyone. In a large one a peer knows its own stage and the neighbours, and of each
other stage a few peers.
"""

from collections import Counter
from collections.abc import Collection

from swarmd.swarm.membership.states import PRESENT
from swarmd.swarm.membership.table import FEW, SMALL_SWARM, Membership, is_near
from swarmd.swarm.wire.messages.presence import Card
from swarmd.values import PeerId


def is_founding(membership: Membership, founder: PeerId) -> bool:
    """Tells if a run's founder is there in the life that founded it, at work or on its way to that. One that was
    started again has a number like any newcomer, and no more to say than those.
    """
    return any(it.peer == founder and not it.arrival and it.state != "left" for it in membership.kin())


def leads_first(membership: Membership, founder: PeerId, now: float) -> bool:
    """Tells if a run's founder is there, as in `is_founding`, and speaks: as long as it does, nobody else leads the
    first step.
    """
    return is_founding(membership, founder) and not membership.is_silent(founder, now)


def count_near(membership: Membership, stage: int) -> int:
    """The number of peers of a stage and its neighbours, this one included, in any state."""
    return sum(1 for card in membership.cards() if is_near(card, stage))


def count_heads(membership: Membership) -> int:
    """The number of heads that have worked, this peer among them if it is one; at least 1."""
    own, counted = membership.own.peer, membership.standing.is_counted
    return max(1, sum(card.peer == own or counted(card.peer) for card in membership.stage(0)))


def knows_all_of(membership: Membership, stage: int) -> bool:
    """Tells if this peer should know every replica of a stage: of near ones, and in a small swarm of all."""
    return abs(membership.own.stage - stage) <= 1 or membership.population() <= SMALL_SWARM


def count_unseen(membership: Membership, stages: int) -> dict[int, int]:
    """The number of peers that are at work, or have ended the run and are still there, and are not known here one by
    one, by stage: of stages far away in a large swarm, by their summaries. Stages without any are left out. Near ones
    are not looked up: a summary that comes late would count those who have gone. So would that of a stage of which
    nobody is known any more.
    """
    known = Counter(card.stage for card in membership.cards() if card.state in PRESENT)
    told = {stage: it.peers + it.finished for stage, it in membership.summaries().items() if known[stage]}
    more = {stage: max(0, count - known[stage]) for stage, count in told.items()}
    if known.total() + sum(more.values()) <= SMALL_SWARM:
        return {}
    own = membership.own.stage
    return {stage: more[stage] for stage in range(stages) if more.get(stage) and abs(own - stage) > 1}


def is_spare(membership: Membership, card: Card) -> bool:
    """Tells if a peer needn't be known here: it is far away in a large swarm, and others of its stage are known. A
    newcomer that only asked here for its place has found one: were that near, it would have said so.
    """
    if membership.population() <= SMALL_SWARM:
        return False
    far = not is_near(card, membership.own.stage)
    return far and (card.stage < 0 or len(membership.stage(card.stage)) >= FEW)


def unmet(membership: Membership) -> list[Card]:
    """The cards of peers that should be known here, and so far are rumours."""
    told, stage = membership.rumours.cards(), membership.own.stage
    small = len(told) + len(membership.cards()) <= SMALL_SWARM
    return [card for card in told if small or is_near(card, stage)]


def reaches_half(membership: Membership, peers: Collection[PeerId], now: float) -> bool:
    """Tells if at least half of these peers, this one included, are live and not silent."""
    return 2 * sum(membership.is_live(peer) and not membership.is_silent(peer, now) for peer in peers) >= len(peers)
