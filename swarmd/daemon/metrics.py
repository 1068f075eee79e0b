"""The status as Prometheus metrics: the same figures, computed nowhere else.

Relies on prometheus-client for the text format only; no registry, no process collectors, no state.
"""

from collections.abc import Iterator

from prometheus_client import CONTENT_TYPE_LATEST
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from swarmd.printable import CELL_LIMIT, printable
from swarmd.status import Status

METRICS_CONTENT_TYPE = CONTENT_TYPE_LATEST


class _StatusCollector(Collector):
    """One status, as prometheus-client wants to collect it."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        yield from _gauges(self._status)
        yield from _counters(self._status)
        yield _info(self._status)
        peers = GaugeMetricFamily("swarmd_stage_replicas", "Live replicas of a stage", labels=["stage"])
        for stage, replicas in self._status.peers.items():
            peers.add_metric([printable(stage, CELL_LIMIT)], replicas)
        yield peers


def render_metrics(status: Status) -> bytes:
    """The text that a Prometheus server scrapes."""
    return generate_latest(_StatusCollector(status))


def _gauges(status: Status) -> Iterator[Metric]:
    optional = {
        "swarmd_loss": ("Training loss of the last committed step, nats per token", status.loss),
        "swarmd_validation_loss": ("Loss on held-out data, nats per token", status.validation_loss),
        "swarmd_seconds_left": ("Expected seconds to the end of the run", status.seconds_left),
        "swarmd_stage": ("Stage this peer holds", status.stage),
    }
    for name, (text, value) in optional.items():
        if value is not None:  # absent is honest; 0 would be a loss
            yield GaugeMetricFamily(name, text, value=value)
    always = {
        "swarmd_version": ("Parameter version", status.version),
        "swarmd_step": ("Step being computed", status.step),
        "swarmd_step_progress": ("Fraction of the step's microbatches that are done", status.progress),
        "swarmd_tokens_per_second": ("Tokens per second of the whole swarm", status.tokens_per_second),
        "swarmd_microbatches_per_second": ("Microbatches per second of this peer", status.microbatches_per_second),
        "swarmd_queue_forward": ("Hops waiting for forward", status.queues.forward),
        "swarmd_queue_backward": ("Hops waiting for backward", status.queues.backward),
        "swarmd_hops_in_flight": ("Hops admitted and not yet answered", status.queues.in_flight),
        "swarmd_hops_downstream": ("Hops passed on whose gradient is not back yet", status.queues.downstream),
        "swarmd_retained_bytes": ("Bytes kept until the step commits", status.queues.retained_bytes),
        "swarmd_memory_bytes": ("Resident memory of the daemon", status.memory_bytes),
        "swarmd_open_files": ("File descriptors of the daemon", status.open_files),
        "swarmd_tasks": ("Tasks of the daemon's event loop", status.tasks),
        "swarmd_uptime_seconds": ("Seconds since the daemon started", status.uptime_seconds),
    }
    for name, (text, value) in always.items():
        yield GaugeMetricFamily(name, text, value=value)


def _counters(status: Status) -> Iterator[Metric]:
    yield CounterMetricFamily("swarmd_sent_bytes", "Bytes sent to peers", value=status.bytes.sent)
    yield CounterMetricFamily("swarmd_received_bytes", "Bytes received from peers", value=status.bytes.received)
    for name, count in status.ledger.items():
        text = f"Microbatches {name} since the run began"
        yield CounterMetricFamily(f"swarmd_{name}_microbatches", text, value=count)


def _info(status: Status) -> Metric:
    labels = {"peer_id": status.peer_id, "run": status.run, "state": status.state, "device": status.device}
    shown = {name: printable(value, CELL_LIMIT) for name, value in labels.items()}  # one name comes from the run
    return InfoMetricFamily("swarmd_peer", "Who this is", value=shown)
