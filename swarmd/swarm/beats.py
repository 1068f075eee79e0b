"""The holder's side of custody: one beat for all hops, to each custodian, at a steady rhythm."""

import asyncio

from swarmd.swarm.custodian import Spawn
from swarmd.swarm.custody import BEAT_SECONDS
from swarmd.swarm.journey import Journeys
from swarmd.swarm.links import Links
from swarmd.swarm.messages import Ack, Beat, HopBeat
from swarmd.swarm.ports import Compute
from swarmd.values import PeerId

BEATS_PER_SECOND = 5.0  # to all custodians together: in a large stage the rhythm slows down, and custodians measure it
BEAT_PATIENCE_SECONDS = 2 * BEAT_SECONDS  # a beat that isn't heard by then is overtaken by the next


class Beats:
    """Says where the hops are that this peer holds, and hears it of those it passed on."""

    def __init__(self, links: Links, journeys: Journeys, compute: Compute, spawn: Spawn) -> None:
        self._links, self._journeys, self._compute, self._spawn = links, journeys, compute, spawn
        self._under_way: set[PeerId] = set()
        links.answers(Beat, self._answer_beat)

    async def run(self) -> None:
        """Beats until cancelled."""
        while True:
            await asyncio.sleep(max(BEAT_SECONDS, len(self._journeys.held_for()) / BEATS_PER_SECOND))
            for custodian, beat in self._beats().items():
                if custodian not in self._under_way:
                    self._under_way.add(custodian)
                    self._spawn(self._send(custodian, beat))

    def _beats(self) -> dict[PeerId, Beat]:
        now, progress = asyncio.get_running_loop().time(), self._compute.progress()
        return {
            custodian: Beat(
                hops=tuple(HopBeat(work.hop.step, work.hop.index, work.state, now - work.since) for work in works),
                counter=progress.counter,
                busy_seconds=progress.busy_seconds,
                service_seconds=progress.forward_seconds + progress.backward_seconds,
            )
            for custodian, works in self._journeys.held_for().items()
        }

    async def _send(self, custodian: PeerId, beat: Beat) -> None:
        try:
            await self._links.tell_all([custodian], beat, Ack, deadline_s=BEAT_PATIENCE_SECONDS)
        finally:
            self._under_way.discard(custodian)

    async def _answer_beat(self, peer: PeerId, beat: Beat) -> Ack:
        self._journeys.custody.hear(peer, beat, asyncio.get_running_loop().time())
        return Ack()
