"""A daemon as it shows itself: its status, its peers and hops, and itself in one line. Reads, changes nothing."""

import asyncio
import time

import psutil

from swarmd.config import RunConfig, fingerprint
from swarmd.daemon.node import Node
from swarmd.printable import counted
from swarmd.status import Bytes, HopRow, PeerRow, PeerState, Queues, Status, Wait
from swarmd.swarm.membership.reach import count_unseen
from swarmd.swarm.membership.states import PRESENT
from swarmd.values import PeerId

SHOWN_AFTER_SECONDS = 2.0  # what this daemon itself is at for less is not called a wait


class Report:
    """One daemon as the control socket, the service manager and the terminal show it."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._started = time.monotonic()
        self._process = psutil.Process()

    def status(self) -> Status:
        run, peer, view = self._node.search.run, self._node.peer, self._node.view
        version = peer.history.version if peer else 0
        last = peer.history.record if peer else None
        sent, received = self._node.transport.traffic()
        transfer = view.transfer() if view else None
        waits, unseen, computing = self._node.waits.now(), self._unseen(), self._node.computing()
        return Status(
            peer_id=self._node.transport.peer_id,
            run=run.name if run else "",
            fingerprint=fingerprint(run) if run else "",
            model=_describe(run) if run else "",
            stage=peer.stage if peer else None,
            stages=run.model.stages if run else 0,
            state=self._state(),
            waiting_for=self._waiting_for(waits),
            version=version,
            step=min(version + 1, run.steps) if run else 0,
            steps=run.steps if run else 0,
            loss=None if last is None or last.skipped else last.loss,
            validation_loss=self._validation_loss(),
            tokens_per_second=self._rate(),
            microbatches_per_second=peer.figures.microbatches_per_second() if peer else 0.0,
            progress=view.progress() if view else 0.0,
            seconds_left=self._seconds_left(),
            queues=view.queues() if view else Queues(idle_because=f"this daemon is {self._state()}"),
            peers=self._replicas(unseen),
            addresses=self._node.addresses(),
            device=self._node.config.device,
            bytes=Bytes(sent, received),
            uptime_seconds=time.monotonic() - self._started,
            conductor=self._conductor(),
            record=peer.history.record_hash if peer else "",
            ledger=dict(peer.history.ledger.totals) if peer else {},
            memory_bytes=self._process.memory_info().rss,
            open_files=self._process.num_fds(),
            tasks=len(asyncio.all_tasks()),
            opened=peer is not None and peer.compute is not None,
            microbatches_done=peer.figures.microbatches_done() if peer else 0,
            state_bytes=transfer.done if transfer else 0,
            state_bytes_total=transfer.total if transfer else 0,
            state_donors=transfer.donors if transfer else 0,
            moving_to=peer.mover.target if peer else None,
            moved_because=peer.balancer.reason if peer else "",
            doing=self._doing(),
            waits=waits,
            final_state=peer.ending.sentence() if peer else "",
            warnings=self._warnings(),
            software=self._node.membership.own.software,
            torch=self._node.membership.own.torch,
            unseen=unseen,
            dtype=computing.dtype if computing else "",
            repeats_per_thousand=1000 * computing.repeats / max(1, computing.hops) if computing else 0.0,
        )

    def _warnings(self) -> tuple[str, ...]:
        disk = self._node.store.trouble if self._node.store is not None else ""
        own = self._node.view.warnings() if self._node.view is not None else []
        return (*([disk] if disk else []), *own)

    def peers(self) -> list[PeerRow]:
        if self._node.peer is None or self._node.view is None:
            return []
        self._node.peer.own.refresh()
        return self._node.view.peer_rows()

    def queues(self) -> list[HopRow]:
        return self._node.view.rows() if self._node.view is not None else []

    def _doing(self) -> str:
        """The command that it carries out, and how far that is, one sentence; "" when there is none."""
        peer, view, looking = self._node.peer, self._node.view, self._node.search.looking
        if peer is None or view is None:
            return f"asking for {looking.sentence()}" if looking is not None and self._node.search.idle else ""
        if peer.drainage is not None:
            return f"draining: {peer.drainage.doing}" if peer.drainage.doing else "draining"
        if peer.mover.target is None:
            return "works on until it drains: its machine will be gone soon" if peer.membership.own.ending else ""
        transfer = view.transfer()
        if 0 < transfer.total > transfer.done:
            return f"moving to stage {peer.mover.target}: its state comes"
        return f"moving to stage {peer.mover.target}: {peer.mover.doing}"

    def _waiting_for(self, waits: tuple[Wait, ...]) -> str:
        """The swarm's lack; if it lacks nothing, a wait of this daemon that has lasted a while."""
        if self._node.view is not None and (lack := self._node.view.waiting_for()):
            return lack
        own = next((wait for wait in waits if wait.seconds >= SHOWN_AFTER_SECONDS or wait.advice), None)
        return own.sentence() if own is not None else ""

    def summary(self) -> str:
        """The daemon in one line."""
        run, peer = self._node.search.run, self._node.peer
        if run is None or peer is None:
            waits = self._node.waits.now()
            return f"{self._state()}: {waits[0].sentence()}" if waits else self._state()
        stage = "no stage yet" if peer.stage is None else f"stage {peer.stage} of {run.model.stages}"
        step = min(peer.history.version + 1, run.steps)
        return f"{self._state()}, {stage}, step {step} of {run.steps} of run {run.name}"

    def _state(self) -> PeerState:
        search = self._node.search
        if search.run is None:
            return "looking" if search.looking is not None else "idle" if search.idle else "joining"
        if (peer := self._node.peer) is None or self._node.view is None:
            return "joining"
        return "waiting" if peer.state == "serving" and self._node.view.waiting_for() else peer.state

    def _replicas(self, unseen: dict[str, int]) -> dict[str, int]:
        if self._node.search.run is None:
            return {}
        live = [card.stage for card in self._node.membership.cards() if card.state in PRESENT]
        stages = range(self._node.search.run.model.stages)
        return {str(stage): live.count(stage) + unseen.get(str(stage), 0) for stage in stages}

    def _unseen(self) -> dict[str, int]:
        run = self._node.search.run
        counts = count_unseen(self._node.membership, run.model.stages) if run is not None else {}
        return {str(stage): count for stage, count in counts.items()}

    def _conductor(self) -> PeerId:
        peer = self._node.peer
        if peer is None or peer.history.finished:
            return ""
        return peer.conductor.conductor_of(peer.history.version + 1)

    def _validation_loss(self) -> float | None:
        return self._node.peer.figures.validation_loss if self._node.peer else None

    def _rate(self) -> float:
        seconds = sum(record.seconds for record in self._node.records)
        return sum(record.tokens for record in self._node.records) / seconds if seconds > 0 else 0.0

    def _seconds_left(self) -> float | None:
        if self._node.search.run is None or not self._node.records or self._node.peer is None:
            return None
        mean = sum(record.seconds for record in self._node.records) / len(self._node.records)
        return mean * (self._node.search.run.steps - self._node.peer.history.version)


def _describe(run: RunConfig) -> str:
    model = run.model
    layers = f"{counted(model.layers, 'layer')} of width {model.hidden} in {counted(model.stages, 'stage')}"
    sharing = ", one block shared in each stage" if model.shared else ""
    return f"{layers}{sharing}, {counted(run.sequences_per_step, 'sequence')} a step"
