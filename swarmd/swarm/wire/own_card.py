"""This peer's own card: the words and figures that it says of itself, and their way to others.

Everything else in `swarm/` reads and changes the card here. `Membership` hears of each change, `Peer` measures the
figures, `Gossip` makes the announcements: they register for that, so that this file needs to know none of them.
"""

import dataclasses
import itertools
from bisect import bisect_right
from collections.abc import Awaitable, Callable
from typing import cast

from swarmd.status import PeerState
from swarmd.swarm.wire.messages.fields import ADDRESSES_CHARACTERS, ADDRESSES_LIMIT
from swarmd.swarm.wire.messages.presence import Card
from swarmd.values import PeerId


def first_card(
    peer: PeerId,
    incarnation: int,
    addresses: tuple[str, ...],
    device: str,
    codecs: tuple[str, ...],
    machine: str = "",
) -> Card:
    """The card of a peer that has no stage yet."""
    return Card(
        peer=peer,
        incarnation=incarnation,
        sequence=0,
        addresses=addresses,
        stage=-1,
        state="joining",
        version=0,
        record_hash="",
        tokens=0,
        data_digest="",
        device=device,
        codecs=codecs,
        forward=0,
        backward=0,
        in_flight=0,
        room=0,
        service_seconds=0.0,
        microbatches_per_second=0.0,
        machine=machine,
    )


def bounded(card: Card) -> Card:
    """A card with no more addresses than are kept, and told."""
    ends = list(itertools.accumulate(map(len, card.addresses)))
    if len(ends) <= ADDRESSES_LIMIT and (not ends or ends[-1] <= ADDRESSES_CHARACTERS):
        return card
    count = min(ADDRESSES_LIMIT, bisect_right(ends, ADDRESSES_CHARACTERS))
    return dataclasses.replace(card, addresses=card.addresses[:count])


class OwnCard:
    """The card of this peer."""

    def __init__(self, card: Card) -> None:
        self._card = bounded(card)
        self._changed: Callable[[Card], None] = lambda before: None
        self._measure: Callable[[], None] = lambda: None
        self._tell: Callable[[Card], Awaitable[None]] | None = None

    def on_change(self, changed: Callable[[Card], None]) -> None:
        """Calls back with the card before, after it has changed."""
        self._changed = changed

    def on_refresh(self, measure: Callable[[], None]) -> None:
        """Registers the function that brings the figures up to date, before the card is sent."""
        self._measure = measure

    def on_announce(self, tell: Callable[[Card], Awaitable[None]]) -> None:
        """Registers the function that tells those near of the card."""
        self._tell = tell

    @property
    def peer(self) -> PeerId:
        """This peer's id."""
        return self._card.peer

    @property
    def card(self) -> Card:
        """The card as it is, to be replaced as a whole."""
        return self._card

    @card.setter
    def card(self, card: Card) -> None:
        before, self._card = self._card, bounded(card)
        self._changed(before)

    @property
    def state(self) -> PeerState:
        """The state on the card: of this peer, it is one of those."""
        return cast("PeerState", self._card.state)

    @property
    def stage(self) -> int | None:
        """The stage on the card; None before this peer has one."""
        return self._card.stage if self._card.stage >= 0 else None

    def become(self, state: PeerState) -> None:
        """Changes this peer's state."""
        self.card = dataclasses.replace(self._card, state=state)

    def refresh(self) -> None:
        """Brings the figures up to date."""
        self._measure()

    def next(self) -> Card:
        """The card to be sent: its figures are current, and it counts as newer than all before."""
        self.refresh()
        self.card = dataclasses.replace(self._card, sequence=self._card.sequence + 1)
        return self._card

    async def announce(self) -> None:
        """Tells those near at once that the card has changed. Before there is a run there is nobody to tell."""
        if self._tell is not None:
            await self._tell(self.next())
