"""Others' cards as this peer shows them: so many, and each so small, that the message fits what transports take.

A card may have many addresses, and cards come from anybody. Pure: knows no swarm.
"""

import dataclasses
from collections.abc import Iterable, Iterator

from swarmd.swarm.wire.framing import packed_bytes, to_frame
from swarmd.swarm.wire.messages.presence import Card

SHOWN_BYTES = 3584  # of one card: 16 of them, and the rest of a summary, fit its largest message


def shown(cards: Iterable[Card], most_bytes: int) -> tuple[Card, ...]:
    """The first of the cards, as many as fit; without the last addresses of those that have very many, and without
    those that no honest peer makes so large.
    """
    return tuple(_within(cards, most_bytes))


def _within(cards: Iterable[Card], left: int) -> Iterator[Card]:
    for card in cards:
        small, size = _cut(card)
        if size > SHOWN_BYTES:
            continue
        left -= size
        if left < 0:
            return
        yield small


def _cut(card: Card) -> tuple[Card, int]:
    """A card with no more addresses than fit, and its size."""
    size, addresses = packed_bytes(to_frame(card).body), card.addresses
    while size > SHOWN_BYTES and addresses:
        size -= packed_bytes(addresses[-1])
        addresses = addresses[:-1]
    return (card if addresses is card.addresses else dataclasses.replace(card, addresses=addresses)), size
