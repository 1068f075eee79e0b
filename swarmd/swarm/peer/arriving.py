"""How a peer comes to the version that the swarm is at: on, by others' state and what was committed since
(`joiner.py`); or back, when a return was decided (`returns.py`).

A return interrupts whatever a peer was about: the pulling of a state, a move. What was going on for later steps is
void.
"""

import logging

from swarmd.swarm.history.history import History
from swarmd.swarm.membership.table import Membership
from swarmd.swarm.peer.mover import Mover
from swarmd.swarm.peer.served_stage import ServedStage
from swarmd.swarm.peer.stage_switch import Switch
from swarmd.swarm.recovery.returns import Returns
from swarmd.swarm.state.download import Candidates
from swarmd.swarm.tasks import first_of
from swarmd.swarm.wire.own_card import OwnCard

log = logging.getLogger(__name__)


class Arriving:
    """This peer's ways to the swarm's version."""

    def __init__(
        self,
        membership: Membership,
        history: History,
        returns: Returns,
        switch: Switch,
        mover: Mover,
        donors: Candidates,
        own: OwnCard,
    ) -> None:
        self._membership, self._history, self._returns = membership, history, returns
        self._switch, self._mover, self._donors, self._own = switch, mover, donors, own

    async def reach(self, served: ServedStage) -> None:
        """Brings this peer's stage to the swarm's version; back to one, if a return is decided meanwhile."""
        due = self._membership.changed.until(lambda: self._returns.due is not None)
        if await first_of(due, served.joiner.reach_version(self._donors, self._membership.changed)):
            await served.joiner.ended()
            await self.make_return()

    async def make_return(self) -> None:
        """Returns to an earlier version, as was decided; if that can't be had, goes on to what others are at."""
        returns = self._returns
        while (record := returns.due) is not None:
            returns.under_way = True
            try:
                arrived = await self._load()
            finally:
                returns.under_way = False
            returns.done(record)
            if not arrived and returns.due is None:
                assert self._switch.served is not None, "it was entered to load the state"
                await self.reach(self._switch.served)

    async def _load(self) -> bool:
        """Loads this peer's stage of the version to return to. False if it can't be had."""
        record, own, history = self._returns.due, self._membership.own, self._history
        assert record is not None, "there is a return to make"
        place = record.place_of(own.peer)
        self._own.become("joining")
        await self._mover.end()
        served = await self._switch.enter(own.stage if place is None else place)
        await self._own.announce()
        state = await self._returns.state(record, served.stage)
        if state is None:
            history.origin.decided()
            return False
        try:
            async with history.lock:
                history.replace(record, await served.compute.import_state(state))
        except (ValueError, MemoryError) as trouble:
            log.warning("version %d can't be loaded: %s", record.step, trouble)
            return False
        if record.names(own.peer, own.incarnation):
            history.took_part(record.step)
        return True
