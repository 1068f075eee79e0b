"""The holder's side of custody: one beat for all hops, to each custodian, at a rhythm that it announces."""

import asyncio

from swarmd.swarm.custodian import Spawn
from swarmd.swarm.journey import Journeys
from swarmd.swarm.links import Links
from swarmd.swarm.messages import BEAT_SECONDS, Ack, Beat, HopBeat
from swarmd.swarm.ports import Compute
from swarmd.swarm.work import Work
from swarmd.values import PeerId

BEATS_PER_SECOND = 2.0  # to all custodians together: in a large stage each of them hears this peer less often
BEAT_CEILING_SECONDS = 15.0  # custodians allow 20 s until a beat names a hop, and 30 s of silence
BEAT_PATIENCE_SECONDS = 2 * BEAT_SECONDS  # a beat that isn't heard by then is overtaken by the next


def beat_interval(custodians: int) -> float:
    """Seconds between the beats to one of so many custodians."""
    return min(BEAT_CEILING_SECONDS, max(BEAT_SECONDS, custodians / BEATS_PER_SECOND))


class Beats:
    """Says where the hops are that this peer holds, and hears it of those it passed on."""

    def __init__(self, links: Links, journeys: Journeys, compute: Compute, spawn: Spawn) -> None:
        self._links, self._journeys, self._compute, self._spawn = links, journeys, compute, spawn
        self._under_way: set[PeerId] = set()
        self._told: dict[PeerId, float] = {}  # custodians of hops held here -> loop time of the last beat to them
        links.answers(Beat, self._answer_beat)

    async def run(self) -> None:
        """Beats until cancelled. A new custodian hears of its hop at once, whatever the rhythm."""
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            now, held = asyncio.get_running_loop().time(), self._journeys.held_for()
            self._told = {custodian: told for custodian, told in self._told.items() if custodian in held}
            pause = beat_interval(len(held))
            for custodian, works in held.items():
                due = custodian not in self._told or now - self._told[custodian] > pause - BEAT_SECONDS / 2
                if due and custodian not in self._under_way:
                    self._told[custodian] = now
                    self._under_way.add(custodian)
                    self._spawn(self._send(custodian, self._beat(works, now, pause)))

    def _beat(self, works: list[Work], now: float, pause: float) -> Beat:
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
            await self._links.tell_all([custodian], beat, Ack, deadline_s=BEAT_PATIENCE_SECONDS)
        finally:
            self._under_way.discard(custodian)

    async def _answer_beat(self, peer: PeerId, beat: Beat) -> Ack:
        self._journeys.custody.hear(peer, beat, asyncio.get_running_loop().time())
        return Ack()
