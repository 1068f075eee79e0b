"""Orders that every peer works out alike: rendezvous hashing, a step's conductors, a stage's round leaders."""

import hashlib
from collections.abc import Container, Iterable

from swarmd.swarm.membership.states import AT_WORK
from swarmd.swarm.wire.messages.presence import Card
from swarmd.values import PeerId


def rendezvous(key: str, peers: Iterable[PeerId]) -> list[PeerId]:
    """The peers in an order that everyone computes alike and that differs from key to key."""
    return sorted(peers, key=lambda peer: (hashlib.blake2b(f"{key}/{peer}".encode(), digest_size=8).digest(), peer))


def conductor_order(step: int, cards: Iterable[Card], members: Container[PeerId]) -> list[PeerId]:
    """The order in which peers come to lead a step: members of the last record, heads first, by rendezvous; then
    newcomers in the order in which they came, by the word of those who gave them their places.

    So nobody who comes during a step changes who leads it, whatever its clock says.
    """
    known = {card.peer: card for card in cards if card.state in AT_WORK}
    old = rendezvous(f"conductor/{step}", [peer for peer in known if peer in members])
    new = sorted((peer for peer in known if peer not in members), key=lambda peer: (known[peer].arrival, peer))
    return [
        *sorted(old, key=lambda peer: known[peer].stage != 0),
        *sorted(new, key=lambda peer: known[peer].stage != 0),
    ]


def leader_order(step: int, stage: int, peers: Iterable[PeerId], members: Container[PeerId]) -> list[PeerId]:
    """The order in which peers come to lead a stage's round of a step: the first, and when that fails the next. Members
    of the stage in the last record, whose right everyone can see, come before newcomers.
    """
    return sorted(rendezvous(f"leader/{step}/{stage}", peers), key=lambda peer: peer not in members)
