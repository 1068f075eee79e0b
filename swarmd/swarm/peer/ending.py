"""The end of a run: nobody leaves before every stage's final state is on the disks of two machines.

A peer's card says of which stages it has the last version on its disk (`Card.final`). Where replicas of a stage are on
one machine only, a peer of another one brings a copy; everyone works out alike who (`final_copies.py`). All of it takes
a bounded time. When that is up, or nobody can take a copy, the end says which stages exist once, and where.

Relies on `Disks` to bring a checkpoint and on the cards; a peer that has left still counts with its disk if it said
goodbye.
"""

import asyncio
import dataclasses
import logging
import re
from collections.abc import Callable, Container

from swarmd.printable import counted, size
from swarmd.status import Wait
from swarmd.swarm.history.peer_context import PeerContext
from swarmd.swarm.membership.order import rendezvous
from swarmd.swarm.membership.reach import unmet
from swarmd.swarm.membership.states import AT_WORK
from swarmd.swarm.membership.table import MEMBERS_LIMIT, SMALL_SWARM
from swarmd.swarm.peer.final_copies import (
    MACHINES,
    Keeper,
    awaited,
    keeper_of,
    machines_of,
    plan_final_copies,
    untold,
)
from swarmd.swarm.ports import Store
from swarmd.swarm.state.disks import Disks
from swarmd.swarm.state.download import Download, OutOfDonors
from swarmd.swarm.tasks import alongside
from swarmd.swarm.wire.messages.disks import CheckpointName
from swarmd.swarm.wire.messages.presence import Card
from swarmd.values import PeerId, host_of, short
from swarmd.whole import name_stages

log = logging.getLogger(__name__)

LINGER_SECONDS = 20.0  # for peers that haven't heard of the last commit
LOOK_SECONDS = 1.0  # between two looks if such a peer still pulls its state from here
WORD_SECONDS = 5.0  # for word of a copy that was brought just before its giver left: an announcement takes no longer
RETRY_SECONDS = 1.0  # between two tries to have a copy: its stage may be writing it still
NAMED = 3  # machines of a stage that are named; a large swarm has hundreds
HOST = re.compile(r"/[a-z0-9]+/([0-9A-Za-z.:_-]{1,64})(/|$)")
"""The part of an address that says where; what comes from a stranger is shown only if it is a plain name."""


class Ending:
    """This peer's part in the end of a run."""

    def __init__(
        self, context: PeerContext, disks: Disks, store: Store, pullers: Callable[[float], Container[PeerId]]
    ) -> None:
        """`pullers`: those who have asked for something of this peer's state since a loop time."""
        self._run, self._limits, self._membership = context.run, context.limits, context.membership
        self._history, self._own, self._disks, self._store = context.history, context.own, disks, store
        self._pullers = pullers
        self._left: dict[PeerId, Card] = {}  # who said goodbye with a final state on its disk
        self._since: float | None = None  # loop time when this peer had written its own
        self._met = False  # everyone has the last version, or was waited for
        self._download: Download | None = None
        self.over = False  # this peer leaves
        self._verdict: tuple[str, bool] = ("", False)  # sentence and risk, as they were then

    # ---------------------------------------------------------------------------------------------- what is known

    @property
    def begun(self) -> bool:
        """True once this peer has the last version, and has written it if it could."""
        return self._since is not None

    def hear(self, card: Card) -> None:
        """A card came. A goodbye doesn't take away what is on that peer's disk."""
        self._left.pop(card.peer, None)
        if card.state == "left" and card.final and card.version >= self._run.steps and len(self._left) < MEMBERS_LIMIT:
            self._left[card.peer] = card

    def stages(self) -> list[int]:
        """The stages that this peer sees to: in a large swarm, where nobody knows all, its own and those beside it."""
        own, every = self._membership.own.stage, range(self._run.model.stages)
        if len(self._history.chain.members()) <= SMALL_SWARM:
            return list(every)
        return [stage for stage in every if abs(stage - own) <= 1]

    def keepers(self) -> list[Keeper]:
        """Everyone who counts, by peer id."""
        cards = [card for card in self._membership.kin() if card.state in (*AT_WORK, "finished")]
        known = {card.peer for card in cards}
        cards += [card for peer, card in self._left.items() if peer not in known and self._membership.fits(card)]
        return [keeper_of(card) for card in sorted(cards, key=lambda card: card.peer)]

    def awaited(self) -> list[int]:
        """Stages that it is worth waiting for."""
        return awaited(self.stages(), self.keepers())

    def only_here(self) -> list[int]:
        """Stages whose final state would be on one machine, and on no other disk that can be asked, without this
        peer, though others can still take it.
        """
        own, keepers = self._membership.own, self.keepers()
        others = {stage for it in keepers if it.here and it.peer != own.peer for stage in it.has}
        return [stage for stage in awaited(self.stages(), keepers) if stage in own.final and stage not in others]

    # ---------------------------------------------------------------------------------------------- the end

    async def run(self, saved: bool) -> None:
        """Stays until all is safe, or time is up. `saved`: this peer's own final state is on its disk."""
        loop, own = asyncio.get_running_loop(), self._membership.own
        spare = saved and self._limits.copies_bytes > 0
        self._since = loop.time()
        final = (own.stage,) if saved else ()
        self._own.card = dataclasses.replace(self._own.card, state="finished", final=final, spare=spare)
        await self._own.announce()
        try:
            async with alongside(self._bring_copies()) as bringing:
                await self._linger(LINGER_SECONDS)
                self._met, met = True, self._late()
                await self._membership.changed.until(self._is_done, self._left_s())
                while (left := self._left_s()) > 0 and not met >= (late := self._late()):  # cut off before, and back
                    self._met = False
                    await self._linger(min(LINGER_SECONDS, left))
                    self._met, met = True, met | late
                    await self._membership.changed.until(self._is_done, self._left_s())
                await self._membership.changed.until(lambda: not self._untold(), min(WORD_SECONDS, self._left_s()))
        finally:
            self._verdict = self.sentence(), self.is_at_risk()
            self.over = True
        if not bringing.cancelled() and (trouble := bringing.exception()) is not None:
            raise trouble

    async def _linger(self, bound_s: float) -> None:
        """Waits until everyone has the last version; for one that pulls its state from here longer than for others.
        Those that are known by rumour alone are met meanwhile, or aren't there.
        """
        await self._membership.changed.until(lambda: not (self._late() or self._unmet()), bound_s)
        while self._pulling() and (left := self._left_s()) > 0:
            await self._membership.changed.wait(min(LOOK_SECONDS, left))

    async def released(self, bound_s: float) -> None:
        """Returns when this peer may leave early: nothing of the final state would be left behind. A run that has
        failed has none.
        """

        def may_leave() -> bool:
            safe = self.begun and not self.only_here() and not self._doubted()
            return safe or bool(self._history.failure)

        await self._membership.changed.until(may_leave, bound_s)

    def _is_done(self) -> bool:
        """True if nothing is to be waited for any more."""
        return not self.awaited() and not self._doubted()

    def _untold(self) -> list[int]:
        """Stages of whose copies word may be on its way here."""
        return untold(self.stages(), self.keepers(), self._membership.own.peer)

    def _doubted(self) -> list[PeerId]:
        """Peers of other machines that can't be reached just now, while a stage is on fewer than MACHINES. They are
        dropped soon, or back, and may have it, or take it.
        """
        if all(count >= MACHINES for count in self.places().values()):
            return []
        doubted = [member.card for member in self._membership.members().values() if member.suspect]
        there = [card for card in doubted if card.state in (*AT_WORK, "finished") and self._membership.fits(card)]
        own = host_of(self._membership.own.machine)
        return [card.peer for card in there if host_of(card.machine) != own]

    def _left_s(self) -> float:
        """Seconds until this peer leaves, whatever is still on its way."""
        now = asyncio.get_running_loop().time()
        return max(0.0, self._limits.final_copies_timeout_s - (now - self._since)) if self._since is not None else 0.0

    def _late(self) -> set[PeerId]:
        """Peers that are there and haven't the last commit yet."""
        cards = [member.card for member in self._membership.members().values() if not member.suspect]
        return {card.peer for card in cards if self._lacks(card)}

    def _unmet(self) -> set[PeerId]:
        """Peers of which others say that they are there without the last commit, and that haven't greeted yet."""
        return {card.peer for card in unmet(self._membership) if self._lacks(card)}

    def _lacks(self, card: Card) -> bool:
        """True if a card says that its peer is there, and hasn't the last commit."""
        return card.state in (*AT_WORK, "joining") and card.version < self._run.steps

    def _pulling(self) -> list[PeerId]:
        """Those of them that have asked for some of this peer's state lately."""
        pullers = self._pullers(asyncio.get_running_loop().time() - LINGER_SECONDS)
        return [peer for peer in self._late() if peer in pullers]

    # ---------------------------------------------------------------------------------------------- copies

    async def _bring_copies(self) -> None:
        """Brings what the plan gives this peer, one stage at a time, until it is cancelled or can keep no more."""
        own = self._membership.own.peer
        while self._membership.own.spare:
            plan = plan_final_copies(self.stages(), self.keepers())
            final = self._membership.own.final
            mine = [stage for stage, chosen in plan.items() if own in chosen and stage not in final]
            ready = [stage for stage in mine if self._sources(stage)]
            brought = await self._bring_one(ready)
            if brought is not None:
                final = tuple(sorted({*self._own.card.final, brought}))
                self._own.card = dataclasses.replace(self._own.card, final=final)
            if brought is not None or not self._membership.own.spare:
                await self._own.announce()
            else:
                await self._membership.changed.wait(RETRY_SECONDS if mine else None)

    async def _bring_one(self, stages: list[int]) -> int | None:
        """Brings a copy of the first of these stages that can be had now."""
        for stage in stages:
            if self._membership.own.spare and await self._bring(stage):
                return stage
        return None

    async def _bring(self, stage: int) -> bool:
        """Brings a copy. True if it is on this disk now. A peer that can keep none offers itself no more."""
        record = self._history.record
        assert record is not None, "a run has one step at least"
        checkpoint = CheckpointName(record.step, stage, record.state)
        try:
            state, found = await self._disks.bring(
                checkpoint, lambda: self._sources(stage), record.replicas(), begun=self._begun
            )
            if await self._store.save_checkpoint(record.step, stage, state, found.raw, copy=True):
                log.info("a copy of stage %d's final state is on this disk", stage)
                return True
            log.warning("the final state of stage %d can't be kept here: others may have more room", stage)
        except OutOfDonors as trouble:
            log.info("no copy of stage %d's final state yet: %s", stage, trouble)
            await asyncio.sleep(RETRY_SECONDS)
            return False
        except MemoryError:
            log.warning("the final state of stage %d can't be copied here: out of memory", stage)
        finally:
            self._download = None
        self._own.card = dataclasses.replace(self._own.card, spare=False)
        return False

    def _begun(self, download: Download) -> None:
        self._download = download

    def _sources(self, stage: int) -> list[PeerId]:
        """Peers that give the stage's final state: another one first for each that asks."""
        own = self._membership.own.peer
        cards = [card for card in self._membership.kin() if card.state == "finished" and card.peer != own]
        able = [card.peer for card in cards if card.stage == stage or stage in card.final]
        return rendezvous(f"source/{own}", able)

    # ---------------------------------------------------------------------------------------------- in words

    def wait(self) -> Wait | None:
        """The reason why this peer stays, for its user."""
        if self.over or not self._history.finished or self._history.failure:
            return None
        if self._since is None:
            return Wait("its last version to be on its own disk")
        if not self._met and (late := self._late() | self._unmet()):
            progress = f"{len(late)} behind, waited for {LINGER_SECONDS:.0f} s at most"
            if pulling := self._pulling():
                progress = f"{len(late)} behind, {len(pulling)} of them pull their state from here, {self._leaves()}"
            return Wait("the others to have the run's last version", progress=progress)
        if not (stages := self.awaited()):
            if doubted := self._doubted():
                return Wait(f"{counted(len(doubted), 'peer')} that can't be reached just now")
            return Wait(f"word of who has the final state of {name_stages(few)}") if (few := self._untold()) else None
        progress = self._leaves()
        if (it := self._download) is not None:
            came = f"{size(it.nbytes)} of {size(it.manifest.snapshot.nbytes)} of stage {it.stage}"
            progress = f"{came} have come here, {progress}"
        return Wait(f"the final state of {name_stages(stages)} to be on a second machine", progress=progress)

    def _leaves(self) -> str:
        return f"leaves in {self._left_s():.0f} s at the latest"

    def places(self) -> dict[int, int]:
        """On how many machines the final state of each stage is, of those that this peer sees to."""
        keepers = self.keepers()
        return {stage: len(machines_of(stage, keepers)) for stage in self.stages()} if self.begun else {}

    def is_at_risk(self) -> bool:
        """True if one of these stages is on fewer than MACHINES, though there were more than one."""
        if self.over:
            return self._verdict[1]
        several = len({it.machine for it in self.keepers()}) > 1
        return several and any(count < MACHINES for count in self.places().values())

    def sentence(self) -> str:
        """Says where the final state is, and what of it exists only once; "" before the end."""
        if self.over or not self.begun:
            return self._verdict[0]
        keepers, own = self.keepers(), self._membership.own
        found = {stage: [*machines_of(stage, keepers).values()] for stage in self.stages()}
        said = []
        for stage, those in found.items():
            names = ["here" if own.peer == it.peer else self._name(it) for it in _own_first(those, own)]
            more = f" and {counted(len(names) - NAMED, 'machine')} more" if len(names) > NAMED else ""
            where = ", ".join(names[:NAMED]) + more if names else "on no disk that is known"
            said.append(f"stage {stage} {where}")
        once = [stage for stage, those in found.items() if len(those) == 1]
        alone = len({it.machine for it in keepers}) == 1
        why = "all peers are on one machine" if alone else self._why_once()
        warning = f". {name_stages(once).capitalize()} on one machine only: {why}" if once else ""
        return f"the final state, version {self._history.version}: {'; '.join(said)}{warning}"

    def _why_once(self) -> str:
        if self.awaited():
            if self._left_s() > 0:
                return "the rest is on its way"
            return f"{self._limits.final_copies_timeout_s:.0f} s were not enough for a copy"
        return "no other machine could take a copy"

    def _name(self, keeper: Keeper) -> str:
        card = self._membership.get(keeper.peer) or self._left.get(keeper.peer)
        hosts = [match[1] for address in (card.addresses if card else ()) if (match := HOST.match(address))]
        return f"on {short(keeper.peer)}{f' ({hosts[0]})' if hosts else ''}"


def _own_first(keepers: list[Keeper], own: Card) -> list[Keeper]:
    """The own peer first, then others of its machine."""
    return sorted(keepers, key=lambda it: (it.peer != own.peer, it.machine != host_of(own.machine)))
