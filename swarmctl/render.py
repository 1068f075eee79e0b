"""Status, peers and queues as tables a person can read.

Relies on rich; computes nothing beyond units and shortening. It knows only the plain data of `swarmd.status`. Much of
that are other peers' words: they are shown as plain text, never as markup, and can't steer the terminal.
"""

import sys
from typing import Self

from rich import progress
from rich.console import Group, RenderableType
from rich.text import Text

from swarmd.layout import Column, Facts, FittedTable, Sentence
from swarmd.printable import SENTENCE_LIMIT, counted, duration, ledger_words, printable, size
from swarmd.screen import MORE, console, words
from swarmd.status import HopRow, PeerRow, Queues, Status

PEER_ID_TAIL = 8  # characters; the beginnings of peer ids are all alike

_STATE_COLOURS = {
    "serving": "green",
    "finished": "green",
    "idle": "cyan",
    "looking": "yellow",
    "joining": "yellow",
    "waiting": "yellow",
    "paused": "yellow",
    "draining": "yellow",
    "left": "red",
}


_WORDS = {"serving": "TRAINING", "finished": "DONE"}
"""The first word of a status; of other states it is their name."""


def render_status(status: Status) -> RenderableType:
    """The whole daemon at a glance."""
    facts = [
        (name, value if isinstance(value, Text) else words(value, limit=SENTENCE_LIMIT))
        for name, value in _status_lines(status)
    ]
    head = words(_headline(status), f"bold {_STATE_COLOURS.get(status.state, '')}".strip(), SENTENCE_LIMIT)
    notes = [f"waiting: {wait.sentence()}" for wait in status.waits]
    if status.waiting_for and not notes:
        notes = [f"waiting: {status.waiting_for}"]
    notes += [f"warning: {warning}" for warning in status.warnings]
    return Group(Sentence(head), Facts(facts), *(Sentence(words(note, "yellow", SENTENCE_LIMIT)) for note in notes))


def _headline(status: Status) -> str:
    """The first line: a word that says whether all is well, and the step or the wait."""
    word = _WORDS.get(status.state, status.state.upper())
    if wait := next(iter(status.waits), None):
        so_long = f" {duration(wait.seconds)}" if wait.seconds >= 1 else ""
        return f"{word}  waiting{so_long} for {wait.what}"
    if not status.run:
        return word
    left = "" if status.seconds_left is None else f", {duration(status.seconds_left)} left"
    return f"{word}  step {status.step:,} of {status.steps:,}{left}"


def _device(status: Status) -> str:
    """The device, and the numerics in which it computes."""
    again = f", {status.repeats_per_thousand:.3g} of 1,000 hops again in a wider range" * bool(
        status.repeats_per_thousand
    )
    return f"{status.device}, products in {status.dtype}{again}" if status.dtype else status.device


def _status_lines(status: Status) -> list[tuple[str, str | Text]]:
    software = f"swarmd {status.software}" + (f", torch {status.torch}" if status.torch else "")
    lines: list[tuple[str, str | Text]] = [
        ("peer", status.peer_id),
        ("state", _state(status.state)),
        *([("doing", status.doing)] if status.doing else []),
        *([("final state", status.final_state)] if status.final_state else []),
        *([("software", software)] if status.software else []),
        ("device", _device(status)),
        ("up", f"{duration(status.uptime_seconds)}, {size(status.memory_bytes)} of memory"),
    ]
    lines += [("address", address) for address in status.addresses]
    if not status.run:
        return lines
    moved = f"{size(status.bytes.sent)} sent, {size(status.bytes.received)} received"
    return [
        ("run", f"{status.run} ({status.model}), fingerprint {status.fingerprint}"),
        *lines,
        ("stage", f"{'none yet' if status.stage is None else status.stage} of {status.stages}"),
        *([("pulling", _transfer(status))] if status.state_bytes_total else []),
        *([("moving", f"to stage {status.moving_to}")] if status.moving_to is not None else []),
        *([("moved because", status.moved_because)] if status.moved_because else []),
        ("step", f"{status.step:,} of {status.steps:,}, {status.progress:.0%} of its microbatches are done"),
        ("loss", _losses(status)),
        ("speed", f"{status.tokens_per_second:,.0f} tokens/s in the swarm, {_rate(status)} microbatches/s here"),
        ("left", "not known yet" if status.seconds_left is None else duration(status.seconds_left)),
        ("queues", _held(status.queues)),
        *([("idle because", status.queues.idle_because)] if status.queues.idle_because else []),
        ("traffic", moved),
        ("peers", _replicas(status)),
        ("ledger", ledger_words(status.ledger)),
    ]


def _transfer(status: Status) -> str:
    share = status.state_bytes / status.state_bytes_total
    came = f"{size(status.state_bytes)} of {size(status.state_bytes_total)}"
    return f"{share:.0%} of the stage's state: {came}, from {counted(status.state_donors, 'donor')}"


def _losses(status: Status) -> str:
    training = "not measured yet" if status.loss is None else f"{status.loss:.4f}"
    validation = "" if status.validation_loss is None else f", validation {status.validation_loss:.4f}"
    return f"{training}{validation}"


def _rate(status: Status) -> str:
    return f"{status.microbatches_per_second:.2f}"


def _held(queues: Queues) -> str:
    """The microbatches that are here, by what they wait for."""
    if not queues.in_flight:
        return "no microbatch is here"
    parts = {
        "waiting for the forward pass": queues.forward,
        "waiting for the backward pass": queues.backward,
        "passed on to the next stage": queues.downstream,
    }
    parts["being computed"] = queues.in_flight - sum(parts.values())
    said = ", ".join(f"{count:,} {where}" for where, count in parts.items() if count > 0)
    return f"{counted(queues.in_flight, 'microbatch')}: {said}" if said else counted(queues.in_flight, "microbatch")


def _replicas(status: Status) -> str:
    """The peers of the swarm, by stage; also those that this daemon has only been told the number of."""
    stages = ", ".join(f"{count:,} of stage {stage}" for stage, count in status.peers.items())
    total = counted(sum(status.peers.values()), "peer")
    return f"{total}: {stages}" if stages else total


_PEER_COLUMNS = (
    Column("peer", right=False),
    Column("stage"),
    Column("state", right=False),
    Column("version", 4),
    Column("forward", 7),
    Column("backward", 8),
    Column("in flight", 6),
    Column("microbatches/s", 2),
    Column("device", 3, right=False),
    Column("swarmd", 5, right=False),
    Column("heard", 1),
)


def render_peers(peers: list[PeerRow], status: Status) -> RenderableType:
    """The swarm as this daemon sees it, stage by stage, and how many peers it doesn't know one by one."""
    if not peers:
        return Text("no peers known")
    rows = []
    for peer in sorted(peers, key=lambda peer: (peer.stage is None, peer.stage or 0, peer.peer_id)):
        heard = "itself" if peer.is_self else f"{peer.last_heard_seconds:.1f} s ago"
        rows.append(
            (
                words(short(peer.peer_id)),
                words("-" if peer.stage is None else peer.stage),
                _state(peer.state, peer.suspect),
                words(peer.version),
                words(peer.forward),
                words(peer.backward),
                words(peer.in_flight),
                words(f"{peer.microbatches_per_second:.2f}"),
                words(peer.device),
                words(peer.software or "-"),
                words(heard),
            )
        )
    return Group(FittedTable(_PEER_COLUMNS, rows, MORE), *map(Sentence, _unseen(status.unseen)))


def _unseen(unseen: dict[str, int]) -> list[Text]:
    """A sentence on the peers that have no row."""
    if not (total := sum(unseen.values())):
        return []
    stages = ", ".join(f"{count:,} of stage {stage}" for stage, count in unseen.items() if count)
    who = "1 more peer has" if total == 1 else f"{total:,} more peers have"
    why = "far from its own stage, a daemon of a large swarm knows a few peers of each"
    return [words(f"{who} no row ({stages}): {why}.", limit=SENTENCE_LIMIT)]


_QUEUE_COLUMNS = (
    Column("step"),
    Column("index"),
    Column("state", right=False),
    Column("since", 1),
    Column("from", 3, right=False),
    Column("passed to", 2, right=False),
)


def render_queues(hops: list[HopRow]) -> RenderableType:
    """The microbatches at this peer, oldest first."""
    if not hops:
        return Text("no microbatch is here")
    rows = []
    for hop in sorted(hops, key=lambda hop: (hop.step, hop.index)):
        sender = short(hop.custodian) if hop.custodian else "own data"
        rows.append(
            (
                words(hop.step),
                words(hop.index),
                words(hop.state),
                words(f"{hop.seconds:.1f} s"),
                words(sender),
                words(short(hop.holder) or "-"),
            )
        )
    return FittedTable(_QUEUE_COLUMNS, rows, MORE)


def render_work(hops: list[HopRow], status: Status) -> RenderableType:
    """The queues, and why the device is idle."""
    queues = status.queues
    why = f"idle: {queues.idle_because}" if queues.idle_because else "computing"
    return Group(
        render_queues(hops),
        *([Sentence(Text(_held(queues)))] if hops else []),
        *([Sentence(Text(f"{size(kept)} are kept until the step commits"))] if (kept := queues.retained_bytes) else []),
        Sentence(words(why, "yellow" if queues.idle_because else "green", SENTENCE_LIMIT)),
    )


class ProgressView:
    """The progress of a command, on stderr: a bar on a terminal, elsewhere a line whenever something changes."""

    def __init__(self) -> None:
        self._console = console(sys.stderr)
        self._told = ""
        self._bar: progress.Progress | None = None
        self._task = progress.TaskID(0)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            doing = progress.TextColumn("{task.description}", markup=False)
            amount = progress.TextColumn("{task.fields[amount]}", markup=False)
            columns = (progress.SpinnerColumn(), doing, progress.BarColumn(), amount)
            self._bar = progress.Progress(*columns, console=self._console, transient=True)
            self._task = self._bar.add_task("", total=None, amount="")
            self._bar.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, doing: str, done: int, total: int) -> None:
        """Shows the progress, if it has changed. `done` of `total` bytes are there; 0: none are fetched."""
        doing, amount = printable(doing), f"{size(done)} of {size(total)}" if total else ""
        if self._bar is not None:
            shares = {"total": float(total) if total else None, "completed": float(done)}
            self._bar.update(self._task, description=doing, amount=amount, **shares)  # type: ignore[arg-type]
        elif (line := f"{doing} ({amount})" if amount else doing) not in ("", self._told):
            self._told = line
            self._console.print(line)


def _state(state: str, suspect: bool = False) -> Text:
    text = words(state, _STATE_COLOURS.get(state, ""))
    return text.append(" (silent)", style="red") if suspect else text


def short(peer_id: str) -> str:
    """The end of a peer id, which is enough to tell peers apart."""
    return peer_id if len(peer_id) <= PEER_ID_TAIL else f"…{peer_id[-PEER_ID_TAIL:]}"
