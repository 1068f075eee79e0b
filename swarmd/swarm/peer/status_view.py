"""A peer's status: figures, queues, why it idles, what the swarm waits for. Reads, changes nothing."""

import asyncio
from collections import Counter

from swarmd.printable import counted, size
from swarmd.status import HopRow, PeerRow, Queues, Wait
from swarmd.swarm.hops.custody import stuck
from swarmd.swarm.membership.table import not_admitting, peer_rows
from swarmd.swarm.peer.peer import Peer
from swarmd.swarm.state.puller import Progress
from swarmd.values import HopId


class StatusView:
    """One peer as others see it through the control socket and its card."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    def transfer(self) -> Progress:
        """The part of the stage's state that has come, while it does; of the other stage's while this peer moves."""
        if (move := self._peer.mover.under_way) is not None:
            return move.puller.progress
        joiner = self._peer.joiner
        if joiner is not None and (joiner.pulling or self._peer.arriving.crossing):
            return joiner.progress
        return Progress()  # there may be part of one that a return has broken off

    def progress(self) -> float:
        """Fraction of the present step that is done: as its conductor knows, or as one's own sum suggests."""
        peer = self._peer
        if peer.sums is None or peer.stage is None:
            return 0.0
        done = peer.conductor.desk.completed
        if done is None:
            replicas = max(1, len(peer.membership.stage(peer.stage)))
            done = replicas * len(peer.sums.of(peer.history.version + 1).accumulated)
        return min(1.0, done / peer.run_config.microbatches)

    def queues(self) -> Queues:
        """The hops here by what they wait for, and why the device idles."""
        journeys, running = self._peer.journeys, self._running()
        states = journeys.hops.queues(running) if journeys is not None else Counter[str]()
        held, passed = states.total(), states["passed"]
        retained = journeys.custodian.retention.nbytes if journeys is not None else 0
        reason = "" if running is not None else self._idle_reason(held, passed)
        return Queues(states["waiting"], states["backward"], held, passed, retained, reason)

    def _idle_reason(self, held: int, passed: int) -> str:
        if self._peer.state == "paused":
            return "this peer is paused: `swarmctl resume` lets it go on"
        if self._peer.state != "serving":
            return f"this peer is {self._peer.state}"
        if waiting := self.waiting_for():
            return waiting
        if passed:
            return f"{counted(passed, 'microbatch')} {'is' if passed == 1 else 'are'} with the next stage"
        return "" if held else "no microbatch has come"

    def rows(self) -> list[HopRow]:
        """Every microbatch that is here."""
        return self._peer.journeys.hops.rows(self._running()) if self._peer.journeys is not None else []

    def _running(self) -> HopId | None:
        """The hop that the device works at."""
        return self._peer.compute.progress().running if self._peer.compute is not None else None

    def waiting_for(self) -> str:
        """A sentence on what the swarm lacks, as far as this peer knows, and what to do about it."""
        lack = self.lack()
        return lack.short() if lack is not None else ""

    def waits(self) -> list[Wait]:
        """Everything that this peer waits for: first what the swarm lacks, then what it is at itself."""
        return [wait for wait in (self.lack(), self._own_wait()) if wait is not None]

    def lack(self) -> Wait | None:
        """The swarm's lack of something, as far as this peer knows of one."""
        peer, stages = self._peer, self._peer.run_config.model.stages
        if peer.history.origin.resumes or peer.returns.under_way:
            others = "other peers of this run, to agree on a checkpoint to resume from"
            return Wait(peer.returns.waiting or others, advice="start them again with the homes that they had")
        if peer.state == "joining" and peer.stage is None and peer.entrance.entries:
            lost = "start this one again with --bootstrap and the address of a peer that lives"
            return Wait("a peer of the run that answers and gives it a place", tried=peer.places.tried, advice=lost)
        pulling = peer.joiner is not None and peer.joiner.pulling
        if pulling and not peer.arriving.donors():
            source = f"a live replica of stage {peer.stage}, to take its state from"
            return Wait(source, advice="start one again with the home that it had")
        if not peer.history.finished and (stage := peer.returns.broken_stage()) is not None:
            what = f"the return to a checkpoint: the parameters of stage {stage} came out not finite"
            return Wait(what, tried=peer.returns.waiting)
        missing = [] if peer.history.finished else peer.membership.missing_stages(stages)
        if missing and (pulling or peer.state != "joining"):
            return self._missing(missing)
        if peer.history.finished:
            return None
        if held := not_admitting(peer.membership, stages):
            return Wait(held, advice="`swarmctl resume` there lets it go on")
        what, _, progress = peer.ballots.waiting.partition(": ")
        return Wait(what, progress=progress) if what else None

    def _missing(self, missing: list[int]) -> Wait:
        names, many = ", ".join(map(str, missing)), "s" * (len(missing) > 1)
        needed, returning = f"a peer for stage{many} {names}", self._peer.returns.waiting
        what = needed if returning in ("", needed) else f"{needed}; and {returning}"
        address = next(iter(self._peer.links.transport.addresses()), "ADDRESS")
        return Wait(what, advice=f"start one with `swarmd start --bootstrap {address}`")

    def _own_wait(self) -> Wait | None:
        """Work of this peer itself that takes its time, be the swarm complete or not."""
        peer, transfer = self._peer, self.transfer()
        came = f"{size(transfer.done)} of {size(transfer.total)} from {counted(transfer.donors, 'donor')}"
        came = came if transfer.total else ""
        if peer.drainage is not None and peer.state != "left":
            return Wait("the end of its drain", progress=peer.drainage.doing)
        if (move := peer.mover.under_way) is not None:
            progress = came or peer.mover.doing
            return Wait(f"its move to stage {move.target}", progress=progress, tried=move.puller.tried)
        if peer.joiner is not None and peer.joiner.pulling:
            asked = f"{counted(len(peer.arriving.donors()), 'replica')} asked"
            here = "it is here, and what was committed since is applied" if peer.joiner.downloaded else asked
            return Wait(f"the state of stage {peer.stage}", progress=came or here, tried=peer.joiner.tried)
        if peer.arriving.crossing:
            return Wait("the state of the history that won", progress=came)
        return peer.ending.wait()

    def warnings(self) -> list[str]:
        """Sentences on what is wrong at this peer though it goes on."""
        peer, now = self._peer, asyncio.get_running_loop().time()
        device = stuck(peer.compute.progress()) if peer.compute is not None else ""
        hops = peer.journeys.admission.ailing.warning(now) if peer.journeys is not None else ""
        failures, strangers = peer.links.fence.warning(now), peer.links.role_refusals.warning(now)
        words = (self._skips(), device, hops, self._differing(), peer.disks.differing, failures, strangers)
        return [word for word in words if word]

    def _differing(self) -> str:
        """Says whose states of a stage differed when this peer last took one."""
        move, joiner = self._peer.mover.under_way, self._peer.joiner
        puller = move.puller if move is not None else joiner
        return puller.differing if puller is not None else ""

    def _skips(self) -> str:
        """Says that steps in a row are skipped, and when the run ends for that."""
        record, limit = self._peer.history.record, self._peer.run_config.skips_limit
        if record is None or not record.skips:
            return ""
        end = f"; the run ends when {limit} in a row are" if limit else ""
        skipped = "the last step was" if record.skips == 1 else f"the last {record.skips:,} steps were"
        return f"{skipped} skipped: {record.why}{end}"

    def peer_rows(self) -> list[PeerRow]:
        """Everyone this peer knows, itself first."""
        return peer_rows(self._peer.membership, asyncio.get_running_loop().time())
