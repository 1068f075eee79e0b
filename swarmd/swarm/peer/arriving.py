"""A peer's ways to the version that the swarm is at: from its start on, and whenever it has fallen behind.

It goes on by records, or by others' state where the gradients are gone (`state/joiner.py`); it returns to a checkpoint
where that was decided (`recovery/returns.py`), and crosses to another history where that one wins
(`recovery/forks.py`). A return interrupts whatever a peer is at, a download or a move: what was under way for later
steps is void.
"""

import functools
import logging

from swarmd.swarm.history.claims import believed_newest, believed_version
from swarmd.swarm.history.peer_context import PeerContext
from swarmd.swarm.peer.mover import Mover
from swarmd.swarm.peer.served_stage import ServedStage
from swarmd.swarm.peer.stage_switch import Switch
from swarmd.swarm.recovery.forks import Forks
from swarmd.swarm.recovery.returns import Returns
from swarmd.swarm.tasks import first_of
from swarmd.values import PeerId

log = logging.getLogger(__name__)

KEEP_UP_SECONDS = 2.0  # between two looks at those who are ahead or of another history, unless a card comes earlier
CALM_SECONDS = 10.0  # the same while nobody is


class Arriving:
    """This peer's ways to the swarm's version."""

    def __init__(self, context: PeerContext, returns: Returns, forks: Forks, switch: Switch, mover: Mover) -> None:
        self._membership, self._history, self._own = context.membership, context.history, context.own
        self._returns, self._forks, self._switch, self._mover = returns, forks, switch, mover
        self.crossing = False  # this peer takes over another history's state
        context.history.believed_version = functools.partial(believed_version, context.membership, context.history)

    def donors(self) -> list[PeerId]:
        """Peers that can give this peer its stage's state."""
        return self._switch.donors(self._membership.own.stage)

    async def keep_up(self) -> None:
        """Asks for records when others are ahead, and for the whole state when gradients are gone; returns and crosses
        when it is time to.
        """
        history, membership = self._history, self._membership
        while not history.finished:
            if self._returns.due is not None:
                await self.make_return()
                await self._serve_again()
            if self._mover.between:  # its move brings this peer up
                await membership.changed.wait(KEEP_UP_SECONDS)
                continue
            if history.broken and self._is_whole_elsewhere():
                history.fall_behind("another replica's parameters are finite")
            if history.behind:
                await self._fetch_anew()
            newest = believed_newest(membership, history)
            if newest.version > history.version:
                await history.catch_up(newest.peer, newest.version)
            await self._cross()
            calm = membership.newest().version <= history.version and not membership.foreign()
            await membership.changed.wait(CALM_SECONDS if calm else KEEP_UP_SECONDS)

    async def reach(self, served: ServedStage) -> None:
        """Brings this peer's stage to the swarm's version; back to one, if a return is decided meanwhile."""
        due = self._membership.changed.until(lambda: self._returns.due is not None)
        if await first_of(due, served.joiner.reach_version(self.donors, self._membership.changed)):
            await served.joiner.ended()
            await self.make_return()

    # ---------------------------------------------------------------------------------------------- by others' state

    async def _fetch_anew(self) -> None:
        """Fetches the whole state anew. Meanwhile this peer is in no plan, like a newcomer."""
        assert self._switch.served is not None, "it is not between two stages"
        self._own.become("joining")
        await self._own.announce()
        await self.reach(self._switch.served)
        await self._serve_again()

    async def _serve_again(self) -> None:
        """Takes part again, after this peer was away from the swarm's version."""
        served = self._switch.served
        assert served is not None, "it has come to the version with its stage's state"
        served.serve()
        if not self._history.finished:
            self._own.become("paused" if served.admission.paused else "serving")
            await self._own.announce()

    def _is_whole_elsewhere(self) -> bool:
        """True if a replica of this peer's stage has the parameters that came out not finite here."""
        cards = [card for peer in self.donors() if (card := self._membership.get(peer)) is not None]
        return any(card.version >= self._history.version and not card.broken for card in cards)

    # ---------------------------------------------------------------------------------------------- returning

    async def make_return(self) -> None:
        """Returns to an earlier version, as was decided; where that can't be had, goes on to what others are at."""
        returns = self._returns
        while (record := returns.due) is not None:
            with returns.making():
                arrived = await self._load()
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

    # ---------------------------------------------------------------------------------------------- crossing

    async def _cross(self) -> None:
        """Goes on in another history, if that wins over this peer's."""
        try:
            async with self._forks.look() as way:
                served = self._switch.served
                if way is None or served is None or self._mover.between:  # it has left its stage meanwhile
                    return
                state = self._own.state
                self._own.become("joining")
                await self._own.announce()
                self.crossing = True
                crossed = await served.joiner.pull(lambda: list(way.donors))
            await (self._forks.arrive(way, served.compute) if crossed else self._forks.stay(served.compute))
        finally:
            self.crossing = False
        newest = believed_newest(self._membership, self._history)
        await self._history.catch_up(newest.peer, newest.version)
        self._own.become(state)
        await self._own.announce()
