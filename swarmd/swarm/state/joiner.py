"""The receiving end of a state transfer: how a newcomer, or a peer that fell behind, gets its stage's state.

It pulls the state from its replicas and follows what is committed meanwhile (`puller.py`), loads it and applies what
came after. Until then it is in no plan and delays nobody. A newcomer's state comes while its stage is being opened; it
is loaded when the device is there.
"""

import asyncio
import contextlib

from swarmd.chunks import chunk_size
from swarmd.errors import NonFinite
from swarmd.swarm.fence import is_of_device
from swarmd.swarm.history.claims import believed_newest, believed_version
from swarmd.swarm.history.parting import common_version
from swarmd.swarm.history.peer_context import PeerContext
from swarmd.swarm.ports import Compute
from swarmd.swarm.signals import Signal
from swarmd.swarm.state.backlog import Backlog, Hold, Missed
from swarmd.swarm.state.download import Candidates
from swarmd.swarm.state.manifest import chunk_hashes
from swarmd.swarm.state.puller import Pulled, Puller
from swarmd.swarm.tasks import start_shared
from swarmd.values import PeerId

RETRY_SECONDS = 1.0  # when nobody gives anything
FAILED_CEILING_SECONDS = 60.0  # between two tries that fail for no reason that anybody foresaw; doubles up to this


class Joiner(Puller):
    """Makes a stage's state this peer's."""

    def __init__(self, context: PeerContext, stage: int) -> None:
        super().__init__(context, stage)
        self._own, self._standing = context.own, context.membership.standing
        self._compute: Compute
        self._hold: Hold
        self._opened = asyncio.Event()  # the two are there
        self._early: asyncio.Task[bool] | None = None
        self._loading: asyncio.Task[None] | None = None
        self.pulling = False  # needs the state of a version that others are at

    def begin(self, donors: Candidates) -> None:
        """Pulls from now on, before the stage is open; `reach_version` goes on with it."""
        self.pulling = True
        self._early = asyncio.create_task(self.pull(donors), name="pull early")

    def opened(self, compute: Compute, hold: Hold) -> None:
        """The stage is on the device: a state can be loaded. `hold` takes the gradients that came meanwhile."""
        self._compute, self._hold = compute, hold
        self._opened.set()

    async def reach_version(self, donors: Candidates, changed: Signal) -> None:
        """Brings the stage to the swarm's version: the whole state from donors, then gradient by gradient."""
        history = self._history
        while history.origin.resumes and self._newest().version == 0:  # nobody knows yet from where
            await changed.wait(RETRY_SECONDS)
        # Who comes to a swarm that has begun, and is cut off from it before it is there, has nothing to begin with.
        goal = self._goal((0 if history.ready else min(1, history.origin.heard), ""))
        if goal[0] == 0:
            history.replace(None, "")
        self.pulling = goal[0] > 0
        failures = 0
        while history.behind or (goal := self._goal(goal))[0] > history.version:
            before = history.version
            try:
                await self._come_closer(donors)
            except Exception as trouble:
                if is_of_device(trouble):
                    raise
                self._links.fence.note("coming to the swarm's version", trouble)
                await asyncio.sleep(min(FAILED_CEILING_SECONDS, RETRY_SECONDS * 2.0**failures))
                failures += 1
            if history.version == before:
                await changed.wait(RETRY_SECONDS)
        self.pulling = False

    def _goal(self, goal: tuple[int, PeerId]) -> tuple[int, PeerId]:
        """The version to reach, and who says that it is there: the highest so far, unless that was an empty word."""
        if goal[1] in self._standing.doubted:
            goal = (min(1, goal[0]), "")
        membership, history = self._context.membership, self._history
        return max(goal, (believed_version(membership, history), believed_newest(membership, history).peer))

    async def _come_closer(self, donors: Candidates) -> None:
        """The whole state, if this peer has none to go on from; else the records that it lacks."""
        newest = believed_newest(self._context.membership, self._history)
        if not self._history.ready or self._history.behind:
            if not await self._pull_on(donors) and newest.peer != self._own.peer and newest.version > 0:
                await self._history.is_shown(newest.peer, newest.version)
        else:
            await self._history.catch_up(newest.peer, newest.version)

    async def _pull_on(self, donors: Candidates) -> bool:
        """Goes on with the pull that was begun early, if there is one; else begins one. False if no state comes."""
        early, self._early = self._early, None
        return await (early or self.pull(donors))

    def close(self) -> None:
        """Ends what was begun early and nobody waits for."""
        if self._early is not None:
            self._early.cancel()

    async def pull(self, donors: Candidates) -> bool:
        """Makes the state that the donors give this peer's, and goes on from it. False if nobody gives it whole."""
        return await self.bring(donors, self._load_and_apply)

    async def _load_and_apply(self, pulled: Pulled) -> None:
        """Makes a state this peer's once the stage is open, and goes on from it by what was committed since."""
        await self._opened.wait()
        await self._load(pulled)
        await self._apply(pulled.backlog)

    async def _load(self, pulled: Pulled) -> None:
        """Makes the state this peer's. The device can't be called back halfway, so neither is this: it ends after a
        crossing that is cancelled.
        """
        crossed_at = await self._crossed_at(pulled)

        async def work() -> None:
            async with self._history.lock:
                digest = await self._compute.import_state(pulled.state)
                self._history.replace(pulled.manifest.record, digest, crossed_at=crossed_at)
                pulled.backlog.hand_over(self._hold)  # before anyone else gets the lock and looks for these gradients

        self._loading = start_shared(work(), "load state")
        await asyncio.shield(self._loading)
        self.loaded(pulled.manifest.version)

    async def _crossed_at(self, pulled: Pulled) -> int | None:
        """The newest version in common with the history that a state is of, if that may be another one: a peer that
        found nobody with the next record can't know.
        """
        history, version = self._history, pulled.manifest.version
        if history.crosses_at is not None or not 0 < history.version < version:
            return history.crosses_at
        common = await common_version(self._context, pulled.givers)
        return common if common < history.version else None

    async def ended(self) -> None:
        """Returns when no state comes or is being made this peer's: a load goes on though the task that began it was
        cancelled.
        """
        self.close()
        self.pulling = False
        if self._early is not None:
            await asyncio.gather(self._early, return_exceptions=True)
            self._early = None
        if self._loading is not None:
            await asyncio.wait({self._loading})

    async def _apply(self, backlog: Backlog) -> None:
        """Applies what was committed while the state came."""
        history = self._history
        with contextlib.suppress(Missed):  # then `history.behind` says so, or a holder still has it
            while (entry := await backlog.next(history.version + 1)) is not None:
                before = history.version
                await history.adopt(entry.record, entry.source)
                backlog.drop(history.version)
                if history.version == before:
                    return

    def _stale(self) -> int:
        return self._history.version if self._history.behind else 0

    async def _own_pieces(self) -> dict[str, memoryview]:
        """The chunks of the state that this peer has already, by hash: some may not have changed since."""
        if not self._history.ready or self._history.version == 0:
            return {}
        async with self._history.lock:
            try:
                state = await self._compute.export_state()
            except (MemoryError, NonFinite):  # the latter: of a version that was refused meanwhile
                return {}
        view = memoryview(state)
        size = chunk_size(view.nbytes)
        hashes = await chunk_hashes(state)
        return {name: view[number * size : (number + 1) * size] for number, name in enumerate(hashes)}
