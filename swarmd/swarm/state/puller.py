"""A stage's state on its way here: who has which version, its chunks, and what is committed meanwhile.

A `Puller` asks the replicas for a snapshot and compares what they offer (`snapshot_search.py`), pulls what most members
offer from all who have it (`download.py`), and follows what is committed (`backlog.py`). When a version's donors are
all gone, or others come that offer another state of it, it begins with another, and keeps the chunks that are in that
one, too. Its caller gives it a coroutine that makes use of the state: a newcomer loads it (`joiner.py`), a peer that
moves leaves its old stage for it (`peer/move.py`).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from swarmd.swarm.history.peer_context import PeerContext
from swarmd.swarm.state.backlog import Backlog, Missed
from swarmd.swarm.state.download import Candidates, Download, OutOfDonors, Sources, of_replicas
from swarmd.swarm.state.manifest import Manifest, model_elements
from swarmd.swarm.state.snapshot_search import Found, SnapshotSearch
from swarmd.values import Buffer, PeerId, short

log = logging.getLogger(__name__)

VERSIONS = 8  # tried, one after the other, before the caller looks at who is there anew


@dataclass(frozen=True)
class Progress:
    """The progress of a pull."""

    done: int = 0  # bytes
    total: int = 0  # 0: no transfer
    donors: int = 0


@dataclass(frozen=True)
class Pulled:
    """A stage's state that came whole."""

    manifest: Manifest
    state: Buffer
    backlog: Backlog  # of what is committed since; followed while the state is made use of
    givers: tuple[PeerId, ...] = ()  # the peers that chunks of it came from


Use = Callable[[Pulled], Awaitable[None]]
"""Makes use of a state. Raises Missed or ValueError where only another version's will do."""


class Puller:
    """Pulls a stage's state from its replicas."""

    def __init__(self, context: PeerContext, stage: int) -> None:
        self._context, self._run, self._links, self._history = context, context.run, context.links, context.history
        self._stage, self._newest = stage, context.membership.newest
        self._search = SnapshotSearch(context, stage)
        self._gradient_size = model_elements(context.run.model)  # of its stage, at most
        self._download: Download | None = None  # the present one, or what is left of the one before
        self.downloaded: dict[PeerId, int] = {}  # chunks by donor, of the state that was loaded last

    @property
    def tried(self) -> str:
        """Says whom it last asked for a snapshot in vain, and why."""
        return self._search.tried

    @property
    def differing(self) -> str:
        """Says whose states of the stage differ; "" if none that were compared do."""
        return self._search.differing

    @property
    def progress(self) -> Progress:
        """The progress of the transfer under way."""
        if self._download is None:
            return Progress()
        return Progress(self._download.nbytes, self._download.manifest.snapshot.nbytes, self._download.donors)

    async def bring(self, donors: Candidates, use: Use) -> bool:
        """Brings the state of the version that the donors give, whatever this peer's own is, follows what is committed
        since, and makes use of it. False if nobody gives it whole.
        """
        liars: set[PeerId] = set()  # not asked again in this transfer
        stale = self._stale()
        floor = stale  # versions up to this one are too old: what was committed next can't be had any more
        for _ in range(VERSIONS):
            begun = self._download.manifest.version if self._download is not None else 0
            found = await self._search.find(donors, liars, floor, begun)
            if found is None and stale:  # nobody has a newer one; and what was missing may be there again
                stale = floor = 0
                continue
            if found is None:
                return False
            manifest = found.manifest
            try:
                await self._bring_version(found, donors, liars, use)
            except OutOfDonors as trouble:
                log.warning("version %d of stage %d can't be had: %s", manifest.version, self._stage, trouble)
                continue
            except Missed as missed:
                log.warning("version %d of stage %d is too old: %s", manifest.version, self._stage, missed)
                floor = manifest.version
                continue
            except (ValueError, MemoryError) as trouble:
                log.warning("version %d of stage %d is not a state: %s", manifest.version, self._stage, trouble)
                liars.update(found.suppliers)
                self._download = None
                continue
            return True
        return False

    async def _bring_version(self, found: Found, donors: Candidates, liars: set[PeerId], use: Use) -> None:
        """Downloads one version and makes use of it. Raises OutOfDonors, Missed, ValueError, MemoryError."""
        manifest = found.manifest
        pieces = self._download.pieces() if self._download is not None else await self._own_pieces()
        questions = of_replicas(self._stage, manifest.version)

        def hear(peer: PeerId, offered: Manifest) -> None:
            if offered.version != manifest.version:
                return
            found.offers[peer] = offered
            if self._search.judge(found).state != manifest.name:
                download.give_up("other donors that came since offer another state")

        sources = Sources(donors, questions, liars, hear)
        download = Download(self._run, self._links, self._stage, self._gradient_size, manifest, sources)
        await download.keep(pieces)
        self._download = download
        del pieces
        for peer in found.suppliers:
            download.add(peer)
        assert manifest.record is not None, "only version 0 has none"
        backlog = Backlog(self._context, self._stage, manifest.record, donors)
        follow = asyncio.create_task(backlog.follow(), name="follow")
        work = asyncio.create_task(download.run(), name="download")
        try:
            with self._history.passing_on(backlog.hear):
                await asyncio.wait({work, follow}, return_when=asyncio.FIRST_COMPLETED)
                if follow.done():
                    follow.result()  # raises Missed
                await use(Pulled(manifest, work.result(), backlog, tuple(download.given)))
        finally:
            for task in (work, follow):
                task.cancel()
            ends = await asyncio.gather(work, follow, return_exceptions=True)
        for end in ends:
            if isinstance(end, Exception) and not isinstance(end, Missed):
                raise end

    async def _own_pieces(self) -> dict[str, memoryview]:
        """The chunks of the state that this peer has already, by hash."""
        return {}

    def _stale(self) -> int:
        """A version from which there was no way on."""
        return 0

    def loaded(self, version: int) -> None:
        """The state that came is in use: nothing of it is kept here any more."""
        assert self._download is not None
        self.downloaded, self._download = self._download.given, None
        givers = ", ".join(f"{short(peer)} ({count})" for peer, count in sorted(self.downloaded.items()))
        log.info("stage %d at version %d came from %s", self._stage, version, givers)
