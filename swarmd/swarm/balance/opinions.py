"""The word of several peers on one newcomer's place: what one of them makes up counts for nothing beside the others.

Fewer than half can lie; where two differ, the lower number counts, since what lies are for is to be ahead. Pure.
"""

import statistics
from collections import Counter
from collections.abc import Mapping

from swarmd.swarm.wire.messages.presence import Card, Place
from swarmd.values import PeerId


def agree_on_place(places: Mapping[PeerId, Place]) -> tuple[PeerId, Place]:
    """The peer that is to be asked further, and the place that most give; the first one decides a tie."""
    said = list(places.values())
    arrival = statistics.median_low(place.arrival for place in said)
    guide = next(peer for peer, place in places.items() if place.arrival == arrival)
    return guide, Place(
        Counter(place.stage for place in said).most_common(1)[0][0],
        _cards_of_most(said),
        Counter(place.founder for place in said).most_common(1)[0][0],
        2 * sum(place.resumes for place in said) > len(said) or all(place.resumes for place in said),
        arrival,
    )


def _cards_of_most(places: list[Place]) -> tuple[Card, ...]:
    """Of each peer that at least half of them show, the card that isn't newer than half of them say."""
    shown: dict[PeerId, list[Card]] = {}
    for place in places:
        for card in {card.peer: card for card in place.cards}.values():
            shown.setdefault(card.peer, []).append(card)
    return tuple(
        sorted(cards, key=lambda card: (card.incarnation, card.sequence))[(len(cards) - 1) // 2]
        for cards in shown.values()
        if 2 * len(cards) >= len(places)
    )
