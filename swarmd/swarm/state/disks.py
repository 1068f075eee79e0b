"""Checkpoints between peers: what is on this peer's disk, to itself and to others; and bringing one from other disks.

A checkpoint is named by version, stage, the state that its record names, and its bytes (`CheckpointName`). So those of
different histories are never mixed up, and two of one history that differ are noticed: what most members of the last
record have is taken (`choice.py`). It is served in hashed chunks like a live replica's state (`manifest.py`), but
from the disk, whatever the stage of its peer, and without holding it in memory.
"""

import asyncio
import dataclasses
import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence

from swarmd.chunks import chunk_hash
from swarmd.config import RunConfig
from swarmd.errors import OutOfRange, Refused
from swarmd.swarm.history.record import Record
from swarmd.swarm.history.record_codec import UNREADABLE, record_from_raw
from swarmd.swarm.membership.table import Membership
from swarmd.swarm.ports import Store
from swarmd.swarm.state.choice import Choice, Offer, choose, kind_of
from swarmd.swarm.state.download import Candidates, Download, OutOfDonors, Questions, Sources
from swarmd.swarm.state.manifest import Manifest, model_elements, read_manifest, take_snapshot
from swarmd.swarm.wire.links import Links
from swarmd.swarm.wire.messages.disks import (
    AskCheckpoint,
    AskCheckpointChunk,
    AskCheckpointList,
    CheckpointList,
    CheckpointName,
)
from swarmd.swarm.wire.messages.state import Chunk, Snapshot
from swarmd.values import Buffer, PeerId, short

log = logging.getLogger(__name__)

OPENED_LIMIT = 8  # checkpoints that are given out at once; of each only the hashes are remembered
CHUNKS_AT_ONCE = 4  # read from the disk; others wait, so that neither it nor the memory is overrun
LIST_SECONDS = 120.0  # to say what is on a disk: once, all of it is read; 40 GB at 0.5 GB/s take 80 s
COPY_SECONDS = 120.0  # to open a checkpoint, which is read once for the hashes of its chunks
SETTLE_SECONDS = 10.0  # to say what is on a disk of which that was asked lately
ASKED_AT_ONCE = 8  # peers asked for a checkpoint: who has it reads all of it for its hashes


class Disks:
    """This peer's disk, and its questions to those of others."""

    def __init__(self, run: RunConfig, links: Links, membership: Membership, store: Store) -> None:
        self._run, self._links, self._membership, self._store = run, links, membership, store
        self._opened: OrderedDict[CheckpointName, Snapshot] = OrderedDict()  # given out, the latest last
        self._opening, self._reading = asyncio.Lock(), asyncio.Semaphore(CHUNKS_AT_ONCE)
        self._lent: dict[CheckpointName, tuple[Buffer, Record]] = {}  # given out of memory
        self.differing = ""  # whose checkpoints differ, in a sentence
        self.has_data = True  # until loading it fails
        links.handle(AskCheckpointList, self._answer_list)
        links.handle(AskCheckpoint, self._answer_checkpoint)
        links.handle(AskCheckpointChunk, self._answer_chunk)

    # ---------------------------------------------------------------------------------------------- one's own disk

    async def checkpoints(self) -> tuple[CheckpointName, ...]:
        """The whole checkpoints of this run that are here."""
        checkpoints: list[CheckpointName] = []
        for version, stage, raw, root in await self._store.list_checkpoints():
            try:
                record = record_from_raw(self._run, raw)
            except UNREADABLE as fault:
                log.warning("the checkpoint of stage %d at version %d is of no use: %s", stage, version, fault)
                continue
            if record.step == version and 0 <= stage < self._run.model.stages:
                checkpoints.append(CheckpointName(version, stage, record.state, root))
        return tuple(checkpoints)

    def lend(self, checkpoint: CheckpointName, state: Buffer, record: Record) -> None:
        """From now on a checkpoint is given out of memory, as this disk doesn't take it: others' may."""
        self._lent[checkpoint] = state, record

    async def load(self, checkpoint: CheckpointName) -> tuple[Buffer, Record] | None:
        """A checkpoint from this disk."""
        if checkpoint in self._lent:
            return self._lent[checkpoint]
        found = await self._store.load_checkpoint(checkpoint.version, checkpoint.stage, checkpoint.root)
        if found is None:
            return None
        try:
            record = record_from_raw(self._run, found[1])
        except UNREADABLE:
            return None
        return (found[0], record) if record.state == checkpoint.state_hash else None

    async def _answer_list(self, peer: PeerId, ask: AskCheckpointList) -> CheckpointList:
        return await self._own_list()

    async def _own_list(self) -> CheckpointList:
        return CheckpointList(await self.checkpoints(), self.has_data, tuple(self._store.damaged()))

    async def _answer_checkpoint(self, peer: PeerId, ask: AskCheckpoint) -> Snapshot:
        async with self._opening:
            snapshot = self._opened.get(ask.checkpoint) or await self._open(ask.checkpoint)
            self._opened[ask.checkpoint] = snapshot
            self._opened.move_to_end(ask.checkpoint)
            while len(self._opened) > OPENED_LIMIT:
                self._opened.popitem(last=False)
        return snapshot

    async def _open(self, checkpoint: CheckpointName) -> Snapshot:
        """Raises Refused."""
        found = await self.load(checkpoint)
        if found is None:
            raise Refused(f"version {checkpoint.version} of stage {checkpoint.stage} is not on this disk")
        state, record = found
        return await take_snapshot(record, state)

    async def _answer_chunk(self, peer: PeerId, ask: AskCheckpointChunk) -> Chunk:
        snapshot = self._opened.get(ask.checkpoint)
        if snapshot is None:
            raise Refused(
                f"version {ask.checkpoint.version} of stage {ask.checkpoint.stage} isn't given out here any more"
            )
        if not 0 <= ask.number < len(snapshot.hashes):
            raise OutOfRange(f"the state has no chunk {ask.number}")
        start = ask.number * snapshot.chunk_bytes
        stop = min(start + snapshot.chunk_bytes, snapshot.nbytes)
        async with self._reading:
            data = await self._read(ask.checkpoint, start, stop)
        if data is None or chunk_hash(data) != snapshot.hashes[ask.number]:  # it was pruned, or written anew
            self._opened.pop(ask.checkpoint, None)
            raise Refused(
                f"version {ask.checkpoint.version} of stage {ask.checkpoint.stage} is not on this disk any more"
            )
        return Chunk(data)

    async def _read(self, checkpoint: CheckpointName, start: int, stop: int) -> Buffer | None:
        if checkpoint in self._lent:
            return memoryview(self._lent[checkpoint][0])[start:stop]
        return await self._store.read_checkpoint(checkpoint.version, checkpoint.stage, start, stop)

    # ---------------------------------------------------------------------------------------------- other disks

    async def ask_around(self, peers: Sequence[PeerId]) -> dict[PeerId, CheckpointList]:
        """Asks what is on the disks of these peers, this one included."""
        own = self._membership.own.peer
        others = [peer for peer in peers if peer != own]
        lists = await self._links.tell_all(others, AskCheckpointList(), deadline_s=LIST_SECONDS)
        return {own: await self._own_list(), **lists}

    async def settle(
        self, checkpoint: CheckpointName, peers: Sequence[PeerId], members: Collection[PeerId]
    ) -> CheckpointName:
        """A checkpoint's name with the root that most members of the last record have of it, as far as they are among
        these peers. Where as many have another one, everyone who asks gets the same.
        """
        others = [peer for peer in peers if peer != self._membership.own.peer]
        lists = await self._links.tell_all(others, AskCheckpointList(), deadline_s=SETTLE_SECONDS)
        lists[self._membership.own.peer] = await self._own_list()
        roots = {
            peer: it.root
            for peer, listed in sorted(lists.items())
            for it in listed.checkpoints
            if it.root and dataclasses.replace(it, root="") == checkpoint
        }
        if not roots:
            return checkpoint
        choice = self._choose(roots, members, checkpoint)
        return dataclasses.replace(checkpoint, root=roots[choice.givers[0]])

    def _choose(self, roots: Mapping[PeerId, str], members: Collection[PeerId], checkpoint: CheckpointName) -> Choice:
        """Chooses among the bytes that peers have under one name, and says who differs."""
        offers = [Offer(peer, root, kind_of(self._membership.get(peer))) for peer, root in roots.items()]
        choice = choose(offers, members, kind_of(self._membership.own))
        if (said := choice.differs(_words(checkpoint))) and said != self.differing:
            log.warning("%s", said)
        self.differing = said or self.differing
        return choice

    async def record_of(self, checkpoint: CheckpointName, holders: Sequence[PeerId]) -> Record | None:
        """The record of a checkpoint, from this disk or from another that has it."""
        if (found := await self.load(checkpoint)) is not None:
            return found[1]
        manifests = await self._manifests(checkpoint, holders)
        return manifests[0][0].record if manifests else None

    async def bring(
        self,
        checkpoint: CheckpointName,
        candidates: Candidates,
        members: Collection[PeerId],
        *,
        begun: Callable[[Download], None] = lambda download: None,
    ) -> tuple[Buffer, Record]:
        """A checkpoint from other disks. `members`: of the last record; `begun`: hears of the download. Raises
        OutOfDonors.
        """
        answers = await self._manifests(checkpoint, candidates())
        if not answers:
            raise OutOfDonors(f"nobody gives version {checkpoint.version} of stage {checkpoint.stage}")
        manifests = {manifest.root: manifest for manifest, _ in reversed(answers)}
        choice = self._choose({peer: manifest.root for manifest, peer in answers}, members, checkpoint)
        if not choice.state:
            raise OutOfDonors(choice.differs(_words(checkpoint)))
        best = manifests[choice.state]
        assert best.record is not None, "`_manifest` has seen to it"
        questions = Questions(AskCheckpoint(checkpoint), lambda it: AskCheckpointChunk(checkpoint, it))
        size, sources = model_elements(self._run.model), Sources(candidates, questions)
        download = Download(self._run, self._links, checkpoint.stage, size, best, sources)
        for peer in choice.givers:
            download.add(peer)
        begun(download)
        return await download.run(), best.record

    async def _manifests(self, checkpoint: CheckpointName, peers: Sequence[PeerId]) -> list[tuple[Manifest, PeerId]]:
        """Asks these peers for their manifests of a checkpoint, some at a time, until one of them gives its own; the
        first ones in any case, so that theirs can be compared.
        """
        others = [peer for peer in peers if peer != self._membership.own.peer]
        pace, found = asyncio.Semaphore(ASKED_AT_ONCE), asyncio.Event()

        async def ask(number: int, peer: PeerId) -> Manifest | None:
            async with pace:
                asked = number < ASKED_AT_ONCE or not found.is_set()
                manifest = await self._manifest(checkpoint, peer) if asked else None
                if manifest is not None:
                    found.set()
                return manifest

        answers = await asyncio.gather(*(ask(number, peer) for number, peer in enumerate(others)))
        return [(manifest, peer) for manifest, peer in zip(answers, others, strict=True) if manifest is not None]

    async def _manifest(self, checkpoint: CheckpointName, peer: PeerId) -> Manifest | None:
        """A peer's manifest of a checkpoint; None if it gives none that is of use."""
        answers = await self._links.tell_all([peer], AskCheckpoint(checkpoint), deadline_s=COPY_SECONDS)
        if peer not in answers:
            return None
        try:
            manifest = read_manifest(self._run, answers[peer], model_elements(self._run.model))
        except UNREADABLE as fault:
            log.warning("a checkpoint from %s is refused: %s", short(peer), fault)
            return None
        named = manifest.record is not None and manifest.record.state == checkpoint.state_hash
        return manifest if named and checkpoint.root in ("", manifest.root) else None


def _words(checkpoint: CheckpointName) -> str:
    return f"the checkpoint of stage {checkpoint.stage} at version {checkpoint.version}"
