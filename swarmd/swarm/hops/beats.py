"""The holder's side of custody: one beat for all hops, to each custodian, at a rhythm that it announces."""

import asyncio

from swarmd.swarm.hops.custody import Custody
from swarmd.swarm.hops.stage_context import StageContext
from swarmd.swarm.hops.under_way import HopUnderWay
from swarmd.swarm.membership.table import SMALL_SWARM
from swarmd.swarm.wire.messages.common import Ack
from swarmd.swarm.wire.messages.hop import BEAT_SECONDS, Beat, HopBeat
from swarmd.values import PeerId

BEATS_PER_SECOND = 2.0  # to all custodians together: in a large stage each of them hears this peer less often
BEATS_PER_SECOND_LARGE = 0.5  # the same in a large swarm, which loses less by noticing a lost peer some seconds later
LOOKS_PER_BEAT = 4  # for new custodians
LOOK_CEILING_SECONDS = 2.0  # ... who give a holder up that has said nothing for 6 s
BEAT_CEILING_SECONDS = 15.0  # custodians allow 20 s until a beat names a hop, and 30 s of silence
BEAT_PATIENCE_SECONDS = 2 * BEAT_SECONDS  # a beat that isn't heard by then is overtaken by the next


def beat_interval(custodians: int, population: int = 0) -> float:
    """Seconds between the beats to one of so many custodians, in a swarm of so many peers."""
    rate = BEATS_PER_SECOND if population <= SMALL_SWARM else BEATS_PER_SECOND_LARGE
    return min(BEAT_CEILING_SECONDS, max(BEAT_SECONDS, custodians / rate))


class Beats:
    """Says where the hops are that this peer holds, and hears it of those it passed on."""

    def __init__(self, context: StageContext, custody: Custody) -> None:
        self._links, self._membership = context.peer.links, context.peer.membership
        self._hops, self._custody, self._compute = context.hops, custody, context.compute
        self._tasks = context.tasks
        self._under_way: set[PeerId] = set()
        self._due: dict[PeerId, float] = {}  # custodians of hops held here -> loop time promised for the next beat
        context.scope.handle(Beat, self._answer_beat)

    async def run(self) -> None:
        """Beats until cancelled. A new custodian hears of its hop at once, whatever the rhythm."""
        pause = BEAT_SECONDS
        while True:
            if not self._hops.by_custodian():
                await self._hops.entered.wait()
            look = min(max(BEAT_SECONDS, pause / LOOKS_PER_BEAT), LOOK_CEILING_SECONDS)
            await asyncio.sleep(look)
            now, held = asyncio.get_running_loop().time(), self._hops.by_custodian()
            self._due = {custodian: due for custodian, due in self._due.items() if custodian in held}
            pause = beat_interval(len(held), self._membership.population())
            for custodian, works in held.items():
                # Each when it was promised to it: others may have come meanwhile, for whom there is less time now.
                if self._due.get(custodian, 0.0) < now + look / 2 and custodian not in self._under_way:
                    self._due[custodian] = now + pause
                    self._under_way.add(custodian)
                    self._tasks.start(self._send(custodian, self._beat(works, now, pause)))

    def _beat(self, works: list[HopUnderWay], now: float, pause: float) -> Beat:
        progress = self._compute.progress()
        return Beat(
            hops=tuple(HopBeat(work.hop.step, work.hop.index, work.state, now - work.since) for work in works),
            counter=progress.counter,
            busy_seconds=progress.busy_seconds,
            service_seconds=progress.forward_seconds + progress.backward_seconds,
            next_seconds=pause,
        )

    async def _send(self, custodian: PeerId, beat: Beat) -> None:
        try:
            await self._links.tell_all([custodian], beat, deadline_s=BEAT_PATIENCE_SECONDS)
        finally:
            self._under_way.discard(custodian)

    async def _answer_beat(self, peer: PeerId, beat: Beat) -> Ack:
        self._custody.on_beat(peer, beat, asyncio.get_running_loop().time())
        return Ack()
