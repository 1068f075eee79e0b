"""A stage's state on its way here: who has which version, its chunks, and what is committed meanwhile.

A `Puller` asks several replicas for a snapshot, pulls the version that most of them have (`download.py`), and follows
what is committed (`backlog.py`). When a version's donors are all gone it begins with another, and keeps the chunks that
are in that one, too. Its caller gives it a coroutine that makes use of the state: a newcomer loads it (`joiner.py`), a
peer that moves leaves its old stage for it (`peer/move.py`).
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from swarmd.errors import PeerFault, PeerUnreachable, Refused
from swarmd.swarm.history.peer_context import PeerContext
from swarmd.swarm.state.backlog import Backlog, Missed
from swarmd.swarm.state.download import DONORS_AT_ONCE, Candidates, Download, OutOfDonors, Sources, of_replicas
from swarmd.swarm.state.manifest import SNAPSHOT_SECONDS, Manifest, model_elements, read_manifest
from swarmd.swarm.wire.messages.state import AskSnapshot
from swarmd.values import Buffer, PeerId, short

log = logging.getLogger(__name__)

VERSIONS = 8  # tried, one after the other, before the caller looks at who is there anew
ANSWER_SECONDS = 2.0  # donors that say what they have so much later than the first are not waited for;
ANSWER_TIMES = 2.0  # nor those that take so many times longer
LOOK_SECONDS = 1.0  # between looks at who else might be a donor


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


Use = Callable[[Pulled], Awaitable[None]]
"""Makes use of a state. Raises Missed or ValueError where only another version's will do."""


class Puller:
    """Pulls a stage's state from its replicas."""

    def __init__(self, context: PeerContext, stage: int) -> None:
        self._context, self._run, self._links, self._history = context, context.run, context.links, context.history
        self._stage, self._newest = stage, context.membership.newest
        self._gradient_size = model_elements(context.run.model)  # of its stage, at most
        self._download: Download | None = None  # the present one, or what is left of the one before
        self.tried = ""  # whom it last asked for a snapshot in vain, and why
        self.downloaded: dict[PeerId, int] = {}  # chunks by donor, of the state that was loaded last

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
            found = await self._find(donors, liars, floor)
            if found is None and stale:  # nobody has a newer one; and what was missing may be there again
                stale = floor = 0
                continue
            if found is None:
                return False
            manifest, suppliers = found
            try:
                await self._bring_version(manifest, suppliers, donors, liars, use)
            except OutOfDonors as trouble:
                log.warning("version %d of stage %d can't be had: %s", manifest.version, self._stage, trouble)
                continue
            except Missed as missed:
                log.warning("version %d of stage %d is too old: %s", manifest.version, self._stage, missed)
                floor = manifest.version
                continue
            except (ValueError, MemoryError) as trouble:
                log.warning("version %d of stage %d is not a state: %s", manifest.version, self._stage, trouble)
                liars.update(suppliers)
                self._download = None
                continue
            return True
        return False

    async def _bring_version(
        self, manifest: Manifest, suppliers: list[PeerId], donors: Candidates, liars: set[PeerId], use: Use
    ) -> None:
        """Downloads one version and makes use of it. Raises OutOfDonors, Missed, ValueError, MemoryError."""
        pieces = self._download.pieces() if self._download is not None else await self._own_pieces()
        questions = of_replicas(self._stage, manifest.version)
        download = Download(
            self._run, self._links, self._stage, self._gradient_size, manifest, Sources(donors, questions, liars)
        )
        await download.keep(pieces)
        self._download = download
        del pieces
        for peer in suppliers:
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
                await use(Pulled(manifest, work.result(), backlog))
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

    # ---------------------------------------------------------------------------------------------- manifests

    async def _find(self, donors: Candidates, liars: set[PeerId], floor: int) -> tuple[Manifest, list[PeerId]] | None:
        """The snapshot above `floor` that most donors have, and who has it; rather the one of which chunks are here."""
        begun = self._download.manifest if self._download is not None else None
        if begun is not None and begun.version > floor:
            again = [it for it in await self._ask_all(donors, liars, begun.version) if it[0].name == begun.name]
            if again:
                return begun, [peer for _, peer in again]
        # A donor that is asked for no version in particular gives a snapshot that others pull, if it is new enough.
        wanted = [0] if floor == 0 else [self._newest().version, 0]
        for version in wanted:
            answers = [it for it in await self._ask_all(donors, liars, version) if it[0].version > floor]
            if answers:
                names = Counter(manifest.name for manifest, _ in answers)
                best = max((manifest for manifest, _ in answers), key=lambda it: (names[it.name], it.version))
                return best, [peer for manifest, peer in answers if manifest.name == best.name]
        return None

    async def _ask_all(self, donors: Candidates, liars: set[PeerId], version: int) -> list[tuple[Manifest, PeerId]]:
        """Asks the donors for their manifests, another one for each that gives none. Once one has answered, the others
        get as long again and a little more: those that come too late are asked again during the download.
        """
        loop = asyncio.get_running_loop()
        began, answers = loop.time(), list[tuple[Manifest, PeerId]]()
        asked: dict[PeerId, asyncio.Task[Manifest | None]] = {}
        deadline = began + SNAPSHOT_SECONDS
        try:
            while True:
                able = [peer for peer in donors() if peer not in liars]
                of_use = sum(1 for task in asked.values() if not task.done() or task.result() is not None)
                for peer in [peer for peer in able if peer not in asked][: DONORS_AT_ONCE - of_use]:
                    asked[peer] = asyncio.create_task(self._ask(peer, version, liars), name="ask snapshot")
                # One that is not among the donors any more is not waited for.
                waiting = {task for peer, task in asked.items() if not task.done() and peer in able}
                now = loop.time()
                if not waiting or now >= deadline:
                    return answers
                done, _ = await asyncio.wait(
                    waiting, timeout=min(LOOK_SECONDS, deadline - now), return_when=asyncio.FIRST_COMPLETED
                )
                for peer, task in asked.items():
                    if task in done and (manifest := task.result()) is not None:
                        took = loop.time() - began
                        deadline = min(deadline, began + max(took + ANSWER_SECONDS, took * ANSWER_TIMES))
                        answers.append((manifest, peer))
        finally:
            for task in asked.values():
                task.cancel()
            await asyncio.gather(*asked.values(), return_exceptions=True)

    async def _ask(self, donor: PeerId, version: int, liars: set[PeerId]) -> Manifest | None:
        question = AskSnapshot(self._stage, version)
        try:
            snapshot = await self._links.ask(donor, question, deadline_s=SNAPSHOT_SECONDS)
            return read_manifest(self._run, snapshot, self._gradient_size)
        except (PeerUnreachable, TimeoutError, Refused) as trouble:
            log.info("no state of stage %d from %s: %s", self._stage, short(donor), trouble)
            self.tried = f"{short(donor)}: {str(trouble) or 'no answer'}"
        except PeerFault as fault:
            log.warning("state of stage %d from %s is refused: %s", self._stage, short(donor), fault)
            liars.add(donor)
        return None
