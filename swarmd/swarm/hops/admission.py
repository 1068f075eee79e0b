"""The room for hops at this peer: one more is taken or refused, and a refused custodian is told when there is room.

None is taken beyond the bounds on count and bytes, while the peer is paused or drains, and while it rests because hops
fail here (`ailing.py`).
"""

import asyncio
import logging

from swarmd.swarm.hops.ailing import Ailing
from swarmd.swarm.hops.stage_context import StageContext
from swarmd.swarm.wire.messages.hop import Busy, Room
from swarmd.values import PeerId

log = logging.getLogger(__name__)

ROOM_SECONDS = 5.0  # to tell someone that there is room


class Admission:
    """The room for hops at this peer."""

    def __init__(self, context: StageContext) -> None:
        self._limits, self._links, self._hops = context.peer.limits, context.peer.links, context.hops
        self._changed, self._tasks = context.sums.changed, context.tasks
        self.paused = False  # or draining: nothing new is admitted
        self.retiring = False  # draining: nothing is begun for rounds either
        self.closed = False  # this peer leaves: a hop is refused
        self.ailing = Ailing()
        self._recovery: asyncio.TimerHandle | None = None  # at the end of a rest
        self._told_busy: dict[PeerId, None] = {}

    # ---------------------------------------------------------------------------------------------- room

    def room(self) -> int:
        """The number of hops that are still taken."""
        return 0 if self.paused or self.resting else max(0, self._limits.in_flight_hops - len(self._hops))

    def has_room(self) -> bool:
        """True if one more hop fits within the bounds on count and bytes."""
        return not self.closed and self.room() > 0 and self._hops.nbytes < self._limits.in_flight_bytes

    def refuse(self, custodian: PeerId) -> Busy:
        """The answer to a hop for which there is no room; its custodian is told as soon as there is."""
        self._told_busy[custodian] = None
        return Busy(len(self._hops))

    def offer_room(self) -> None:
        """Tells everyone who was refused that there is room, if there is."""
        if self.has_room():
            for custodian in list(self._told_busy):
                del self._told_busy[custodian]
                self._tasks.start(self._tell_room(custodian))

    async def _tell_room(self, custodian: PeerId) -> None:
        await self._links.tell_all([custodian], Room(self.room()), deadline_s=ROOM_SECONDS)

    def peer_lost(self, peer: PeerId) -> None:
        """A peer is gone: it is told nothing any more."""
        self._told_busy.pop(peer, None)

    # ---------------------------------------------------------------------------------------------- pausing

    def pause(self, *, retiring: bool = False) -> None:
        """From now on nothing new is admitted; what is under way comes to its end."""
        self.paused, self.retiring = True, retiring
        self._changed.notify()

    def resume(self) -> None:
        """Undoes `pause`."""
        self.paused = self.retiring = False
        self.offer_room()
        self._changed.notify()

    def close(self) -> None:
        """This peer leaves: no hop is taken any more."""
        self.closed = True
        if self._recovery is not None:
            self._recovery.cancel()

    # ---------------------------------------------------------------------------------------------- resting

    @property
    def resting(self) -> bool:
        """True while no hop is taken because too many have failed here."""
        return self.ailing.rests(asyncio.get_running_loop().time())

    def fail_at(self, what: str, trouble: Exception) -> None:
        """A hop, or something of it, failed here though nobody foresaw it; several in a row make this peer rest."""
        self._links.fence.note(what, trouble)
        loop = asyncio.get_running_loop()
        if not (seconds := self.ailing.failed(f"{type(trouble).__name__}: {trouble}", loop.time())):
            return
        log.warning("no more microbatches are taken for %.0f s: %d failed in a row", seconds, self.ailing.failures)
        if self._recovery is not None:
            self._recovery.cancel()
        self._recovery = loop.call_later(seconds, self._recover)

    def _recover(self) -> None:
        self.offer_room()
        self._changed.notify()
