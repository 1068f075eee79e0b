"""The search for the snapshot to pull: every donor says which state it would give, and these are compared.

Donors pin what they are at when they are asked, so they may answer with different versions; those are asked again, for
one of these or for the next one, until most of the members among them can be compared (`choice.py`). A single donor is
taken at its word. Until most of the members agree, the others are waited for, within a bound: nobody gains by answering
first.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from swarmd.errors import NO_ANSWER, PeerFault, PeerUnreachable, Refused
from swarmd.swarm.history.peer_context import PeerContext
from swarmd.swarm.history.record import Record
from swarmd.swarm.history.record_codec import record_from_raw
from swarmd.swarm.state.choice import Choice, Offer, choose, kind_of, voters
from swarmd.swarm.state.download import DONORS_AT_ONCE, Candidates
from swarmd.swarm.state.manifest import SNAPSHOT_SECONDS, Manifest, model_elements, read_manifest
from swarmd.swarm.wire.messages.commit import AskRecord
from swarmd.swarm.wire.messages.state import AskSnapshot
from swarmd.values import PeerId, short

log = logging.getLogger(__name__)

ANSWER_SECONDS = 2.0  # once most members agree, others that do so much later than the first are not waited for;
ANSWER_TIMES = 2.0  # nor those that take so many times longer,
COPY_BYTES_PER_SECOND = 2.5e8  # nor those that copy and hash their state more slowly than this
MOST_SECONDS = 15.0  # more, after the first answer, until most members agree: a device may be busy, or a peer paused
ELEMENT_BYTES = 16  # of a state, for a parameter: with its moments
LOOK_SECONDS = 1.0  # between looks at who else might be a donor
SAME_VERSION_SECONDS = 8.0  # for a donor to come to a version that another has pinned, and to pin it
UNCOMPARED_TRIES = 3  # to compare; then, as steps may be quicker than snapshots, a state is taken as if it were alone
RECORD_SECONDS = 5.0  # for the peer that gave this one its place to give a record


@dataclass
class Found:
    """The snapshot that was chosen, and all that was offered at its version."""

    manifest: Manifest
    offers: dict[PeerId, Manifest]
    known: frozenset[PeerId]  # members of the stage in the last record that is known here

    @property
    def suppliers(self) -> list[PeerId]:
        """The peers that offer the same bytes."""
        return [peer for peer, manifest in self.offers.items() if manifest.root == self.manifest.root]


class SnapshotSearch:
    """Asks a stage's replicas which state they would give, and chooses."""

    def __init__(self, context: PeerContext, stage: int) -> None:
        self._run, self._links, self._history = context.run, context.links, context.history
        self._membership, self._stage = context.membership, stage
        self._gradient_size = model_elements(context.run.model)  # of its stage, at most
        self.tried = ""  # whom it last asked in vain, and why
        self._uncompared = 0  # times in a row that donors couldn't be brought to one version
        self.differing = ""  # whose states differ, in a sentence

    async def find(self, donors: Candidates, liars: set[PeerId], floor: int, begun: int) -> Found | None:
        """A snapshot above version `floor`; rather of version `begun`, of which chunks are here. None if there is none,
        or as many members offer one as another.
        """
        # A donor that is asked for no version in particular gives a snapshot that others pull, if it is new enough.
        known = await self._known_members(self._membership.newest().version)
        wanted = [begun] if begun > floor else []
        wanted += [0] if floor == 0 else [self._membership.newest().version, 0]
        for version in wanted:
            answers = await self._ask_all(lambda: [*donors(), *self._unmet(known)], liars, version, known)
            if offers := {peer: manifest for manifest, peer in answers if manifest.version > floor}:
                return await self._compare(offers, liars, known)
        return None

    def _unmet(self, known: frozenset[PeerId]) -> list[PeerId]:
        """The members that haven't greeted this peer: they are no donors to it yet, and it mustn't believe those alone
        that were quick to greet.
        """
        return [peer for peer in sorted(known) if self._membership.get(peer) is None]

    def judge(self, found: Found) -> Choice:
        """Chooses among what is offered at one version, and says who differs."""
        offers = [Offer(peer, it.name, self._kind(peer)) for peer, it in sorted(found.offers.items())]
        choice = choose(offers, members_among(found.offers, found.known, self._stage), kind_of(self._membership.own))
        self._say(choice, f"stage {self._stage} at version {found.manifest.version}")
        return choice

    def _kind(self, peer: PeerId) -> str:
        return kind_of(self._membership.get(peer))

    def _say(self, choice: Choice, what: str) -> None:
        """Logs whose states differ, once for each set of peers, and keeps it for the status."""
        said = choice.differs(what)
        if said and said != self.differing:
            log.warning("%s", said)
        self.differing = said or self.differing
        if not choice.state:
            self.tried = said
        elif len(choice.givers) == 1 and not choice.others:
            log.info("the state of %s is taken from %s alone", what, short(choice.givers[0]))

    async def _compare(
        self, offers: dict[PeerId, Manifest], liars: set[PeerId], known: frozenset[PeerId]
    ) -> Found | None:
        """Brings the members among the donors to one version, as far as they can, and chooses there."""
        members = members_among(offers, known, self._stage)
        counted = {it.peer: offers[it.peer].version for it in voters([Offer(peer, "") for peer in offers], members)}
        times = Counter(counted.values())
        there: dict[PeerId, Manifest] = {}
        for version in (max(times, key=lambda it: (times[it], it)), max(times) + 1):
            there = {peer: it for peer, it in offers.items() if it.version == version}
            absent = [peer for peer in counted if peer not in there]
            if absent and 2 * _agree(there, counted) <= len(counted):
                brought = await self._ask_all(absent.copy, liars, version, known, SAME_VERSION_SECONDS)
                there |= {peer: manifest for manifest, peer in brought if manifest.version == version}
            if 2 * len(there.keys() & counted) > len(counted):
                break
        else:
            self._uncompared += 1
            if self._uncompared < UNCOMPARED_TRIES:
                self.tried = f"the states of {', '.join(map(short, counted))}: they are of different versions"
                return None
            newest = max(offers.values(), key=lambda it: (times[it.version], it.version)).version
            there = {peer: it for peer, it in offers.items() if it.version == newest}
        self._uncompared = 0
        best = Found(next(iter(there.values())), there, known)
        choice = self.judge(best)
        if not choice.state:
            return None
        best.manifest = best.offers[choice.givers[0]]
        return best

    # ---------------------------------------------------------------------------------------------- the last record

    async def _known_members(self, version: int) -> frozenset[PeerId]:
        """The replicas of this stage in the last record: of this peer's own history; for a newcomer as the peer that
        gave it its place knows it, for a version that others are at.
        """
        record = self._history.record or await self._record_of_guide(version)
        return record.replicas(self._stage) if record is not None else frozenset()

    async def _record_of_guide(self, version: int) -> Record | None:
        """The record of a version, or of the one before, from the peer that gave this one its place."""
        guide = self._history.origin.guide
        for step in (version, version - 1):
            if not guide or step < 1:
                return None
            try:
                answer = await self._links.ask(guide, AskRecord(step), deadline_s=RECORD_SECONDS)
                return record_from_raw(self._run, answer.record)
            except NO_ANSWER as trouble:
                log.info("no record of step %d from %s: %s", step, short(guide), trouble)
        return None

    # ---------------------------------------------------------------------------------------------- questions

    async def _ask_all(
        self,
        donors: Candidates,
        liars: set[PeerId],
        version: int,
        known: frozenset[PeerId],
        bound_s: float = SNAPSHOT_SECONDS,
    ) -> list[tuple[Manifest, PeerId]]:
        """Asks the donors for their manifests, another one for each that gives none; so long at most. Once one has
        answered, the others get as long again and a little more, and more than that as long as most of the `known`
        members among them don't agree: those that come too late are asked again during the download.
        """
        loop = asyncio.get_running_loop()
        began, answers = loop.time(), list[tuple[Manifest, PeerId]]()
        asked: dict[PeerId, asyncio.Task[Manifest | None]] = {}
        deadline, late = began + bound_s, began + bound_s  # `late`: as long as most don't agree
        try:
            while True:
                able = sorted((peer for peer in donors() if peer not in liars), key=lambda peer: peer not in known)
                of_use = sum(1 for task in asked.values() if not task.done() or task.result() is not None)
                for peer in [peer for peer in able if peer not in asked][: DONORS_AT_ONCE - of_use]:
                    asked[peer] = asyncio.create_task(self._ask(peer, version, liars), name="ask snapshot")
                # One that is not among the donors any more is not waited for.
                waiting = {task for peer, task in asked.items() if not task.done() and peer in able}
                now = loop.time()
                offers = {peer: manifest for manifest, peer in answers}
                able_to = asked.keys() - {peer for peer, task in asked.items() if task.done() and peer not in offers}
                electors = known & able_to or able_to
                until = deadline if 2 * _agree(offers, electors) > len(electors) else late
                if not waiting or now >= until:
                    return answers
                done, _ = await asyncio.wait(
                    waiting, timeout=min(LOOK_SECONDS, until - now), return_when=asyncio.FIRST_COMPLETED
                )
                for peer, task in asked.items():
                    if task in done and (manifest := task.result()) is not None:
                        patience = self._patience(loop.time() - began)
                        deadline, late = min(deadline, began + patience), min(late, began + patience + MOST_SECONDS)
                        answers.append((manifest, peer))
        finally:
            for task in asked.values():
                task.cancel()
            await asyncio.gather(*asked.values(), return_exceptions=True)

    def _patience(self, took_s: float) -> float:
        """Seconds for all donors to answer, when the first took so many."""
        copying = ELEMENT_BYTES * self._gradient_size / self._run.model.stages / COPY_BYTES_PER_SECOND
        return max(took_s + ANSWER_SECONDS, took_s * ANSWER_TIMES, ANSWER_SECONDS + copying)

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


def members_among(offers: Mapping[PeerId, Manifest], known: frozenset[PeerId], stage: int) -> frozenset[PeerId]:
    """The members of the last record among those who offer a state of a stage: the ones that are known as such; where
    there are none, as nobody here knows better, those whom their own offer's record names.
    """
    if among := known & offers.keys():
        return among
    records = ((peer, it.record) for peer, it in offers.items())
    return frozenset(peer for peer, record in records if record and peer in record.replicas(stage))


def _agree(offers: Mapping[PeerId, Manifest], counted: Collection[PeerId]) -> int:
    """The number of those who count that offer what most of them offer."""
    return max(Counter(it.name for peer, it in offers.items() if peer in counted).values(), default=0)
