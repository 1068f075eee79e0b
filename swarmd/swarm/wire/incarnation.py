"""This peer's incarnation: a number that grows with every life of one identity, so that others tell a new life's cards
from an old one's.

The daemon begins above the last number, or with the wall clock if that is higher, and keeps it on its disk. Where
both are behind (a home restored from a backup, a clock set back), others know a later life of this peer: it goes above
that one. Relies on the port `keep` to write a number down before anyone hears it.
"""

import asyncio
import dataclasses
import logging
from collections import deque
from collections.abc import Awaitable, Callable

from swarmd.swarm.wire.messages.common import INCARNATION_STEP
from swarmd.swarm.wire.messages.fields import INCARNATION_LIMIT
from swarmd.swarm.wire.own_card import OwnCard

log = logging.getLogger(__name__)

RISES = 6  # in RISES_SECONDS at most: one is enough for an honest swarm, and each costs a write to the disk
RISES_SECONDS = 60.0
REACH = 1 << 60  # nanoseconds that one life goes up in all, 36 years: a clock set back costs no more, and others' words
# bring no life to the end of the numbers

Keep = Callable[[int], Awaitable[None]]
"""Writes an incarnation down, for good, and uses it wherever the network needs such a number. Raises OSError."""


async def keep_nothing(incarnation: int) -> None:
    """For a peer that has no disk."""


class Incarnation:
    """Keeps this peer's incarnation above those that others know of it."""

    def __init__(self, own: OwnCard, keep: Keep = keep_nothing) -> None:
        self._own, self._keep = own, keep
        self._rising = asyncio.Lock()
        self._risen: deque[float] = deque(maxlen=RISES)  # loop times of the last ones
        self._first = own.card.incarnation

    async def rise_above(self, known: int) -> bool:
        """Goes above an incarnation of this peer that others know, if it isn't yet. False if that can't be."""
        async with self._rising:
            own = self._own.card.incarnation
            if known < own:
                return True
            now = asyncio.get_running_loop().time()
            often = len(self._risen) == RISES and now - self._risen[0] < RISES_SECONDS
            if known >= min(INCARNATION_LIMIT, self._first + REACH) or often:
                log.debug("others know incarnation %d of this peer, and it stays at %d", known, own)
                return False
            self._risen.append(now)
            new = min(known + INCARNATION_STEP, INCARNATION_LIMIT)
            try:
                await self._keep(new)
            except OSError as trouble:
                log.error("can't write down incarnation %d: %s; it stays at %d", new, trouble, own)
                return False
            self._own.card = dataclasses.replace(self._own.card, incarnation=new)
            log.warning(
                "others know a later life of this peer (%d, and this is %d): it goes on as %d. Its clock was set back, "
                "its home comes from a backup, or a second daemon has the same identity",
                known,
                own,
                new,
            )
            return True
