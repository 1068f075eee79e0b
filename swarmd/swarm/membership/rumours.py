"""Rumours: cards of peers that don't count here yet, since others passed them on, or nobody has met their peers.

A rumour may make this peer greet somebody. It counts nowhere, and is forgotten when nobody repeats it.
"""

from collections import OrderedDict

from swarmd.swarm.wire.messages.presence import Card
from swarmd.values import PeerId

RUMOURS_KEPT = 1024
RUMOUR_SECONDS = 120.0  # after which a card that nobody has repeated is forgotten


class Rumours:
    """The cards that this peer was told, and when."""

    def __init__(self) -> None:
        self._told: OrderedDict[PeerId, tuple[Card, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._told)

    def __contains__(self, peer: PeerId) -> bool:
        return peer in self._told

    def hear(self, card: Card, now: float) -> bool:
        """Takes a card in. True if its peer was unknown."""
        known = self._told.pop(card.peer, None)
        self._told[card.peer] = card, now
        while len(self._told) > RUMOURS_KEPT:
            self._told.popitem(last=False)
        return known is None

    def drop(self, peer: PeerId) -> Card | None:
        """Forgets a rumour, and returns its card."""
        known = self._told.pop(peer, None)
        return known[0] if known is not None else None

    def forget_old(self, now: float) -> None:
        while self._told and now - next(iter(self._told.values()))[1] > RUMOUR_SECONDS:
            self._told.popitem(last=False)

    def cards(self) -> list[Card]:
        """All of them, the latest last."""
        return [card for card, _ in self._told.values()]
