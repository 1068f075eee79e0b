"""The pace of gossip: an author has a share, and what others say in thousands of names has one by who brings it.

Everyone passes gossip on to everyone, so a word too much costs the whole swarm. Plain data; the caller passes the time.
"""

from swarmd.net.limits import TransportLimits
from swarmd.net.shares import Shares
from swarmd.values import PeerId

SURPLUS_BURST, SURPLUS_PER_S = 64.0, 1.0  # messages for which there is no room; no honest author says one of them
WORD_BYTES = 16 << 10  # that count as one message: a summary of a large stage is smaller


class GossipPace:
    """The latest messages, counted to their authors and to those who bring them."""

    def __init__(self, limits: TransportLimits) -> None:
        self._authors = Shares(limits.gossip_burst, limits.gossip_per_s, limits.known_peers)
        self._surplus = Shares(SURPLUS_BURST, SURPLUS_PER_S, limits.connections)
        self._unknown = Shares(limits.unknown_gossip_burst, limits.unknown_gossip_per_s, limits.connections)

    def _of(self, author: PeerId, forwarder: PeerId, *, known: bool) -> list[tuple[Shares, PeerId]]:
        """The shares that a message takes from; authors that aren't known share what their forwarder may bring."""
        own = (self._authors, author)
        return [own] if known else [own, (self._unknown, forwarder)]

    def has_room(self, author: PeerId, forwarder: PeerId, known: bool, now: float) -> bool:
        """Tells if a message may be looked at that is said to be this author's."""
        return all(shares.has_room(key, now) for shares, key in self._of(author, forwarder, known=known))

    def is_flood(self, author: PeerId, now: float) -> bool:
        """Counts a message that an author has brought itself and for which there was no room. True if they are many."""
        return not self._surplus.take(author, now)

    def count(self, author: PeerId, forwarder: PeerId, known: bool, now: float, nbytes: int) -> None:
        """Counts a message that is this author's, by its signature."""
        for shares, key in self._of(author, forwarder, known=known):
            shares.take(key, now, 1.0 + nbytes // WORD_BYTES)
