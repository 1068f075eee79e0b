"""A peer's measurements of itself: its work so far, and the figures on its card."""

import asyncio
import dataclasses

from swarmd.swarm.balance.balancer import MEASURED_TASKS, rest_seconds
from swarmd.swarm.balance.places import Places
from swarmd.swarm.history.peer_context import PeerContext
from swarmd.swarm.history.record import Record
from swarmd.swarm.peer.stage_switch import Switch

REFRESH_SECONDS = 5.0  # between two looks at this peer's own figures, unless someone is told of them earlier


class Figures:
    """This peer's counters, and what is made of them."""

    def __init__(self, context: PeerContext, switch: Switch, places: Places) -> None:
        self._run, self._links, self._history = context.run, context.links, context.history
        self._switch, self._places = switch, places
        self.validation_loss: float | None = None  # the newest
        self._committed = 0  # microbatches accumulated here in steps that are over
        self._began: float | None = None  # loop time when this peer began to serve
        self._refreshed = 0.0  # loop time
        context.own.on_refresh(self.refresh)

    def begin(self) -> None:
        """This peer begins to serve: rates count from now on."""
        self._began = asyncio.get_running_loop().time()

    def on_record(self, record: Record) -> None:
        """Counts what the committed step's sum has, before it is forgotten."""
        if record.validation_loss is not None:
            self.validation_loss = record.validation_loss
        assert self._switch.served is not None, "a record is applied to a stage"
        self._committed += len(self._switch.served.sums.of(record.step).accumulated)

    def on_replaced(self) -> None:
        """Takes the validation loss back, as it may be of a version that is void now."""
        if self.validation_loss is not None:
            self.validation_loss = self._history.record.validation_loss if self._history.record else None

    def microbatches_done(self) -> int:
        """Microbatches accumulated here since this peer came."""
        served = self._switch.served
        return self._committed + (len(served.sums.of(self._history.version + 1).accumulated) if served else 0)

    def microbatches_per_second(self) -> float:
        """This peer's own rate since it began to serve."""
        if self._began is None or self._switch.served is None:
            return 0.0
        return self.microbatches_done() / max(1e-9, asyncio.get_running_loop().time() - self._began)

    def sweep(self, now: float) -> None:
        """Keeps the card current while nobody is told of it."""
        if now - self._refreshed >= REFRESH_SECONDS:
            self.refresh()

    def refresh(self) -> None:
        """Brings the figures on the card up to date, for handshakes and heartbeats."""
        if (served := self._switch.served) is None:
            return
        self._refreshed = asyncio.get_running_loop().time()
        progress, history, own = served.compute.progress(), self._history, self._links.own
        queues = served.hops.queues(progress.running)
        own.card = dataclasses.replace(
            own.card,
            addresses=self._links.transport.addresses(),
            version=history.version,
            record_hash=history.record_hash,
            tokens=history.chain.total_tokens,
            forward=queues["waiting"],
            backward=queues["backward"],
            in_flight=queues.total(),
            room=served.admission.room(),
            service_seconds=progress.forward_seconds + progress.backward_seconds,
            microbatches_per_second=self.microbatches_per_second(),
            rested=self._refreshed - self._switch.left_at >= rest_seconds(self._run.rebalance_seconds),
            has_data=self._places.has_data,
            measured=progress.counter >= MEASURED_TASKS,
            broken=history.broken,
        )
