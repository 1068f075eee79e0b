"""Status, peers and queues as tables a person can read.

Relies on rich; computes nothing beyond units and shortening. It knows only the plain data of `swarmd.status`. Much of
that are other peers' words: they are shown as plain text, never as markup, and can't steer the terminal.
"""

import sys
from typing import Self, TextIO

from rich import progress
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from swarmd.printable import CELL_LIMIT, SENTENCE_LIMIT, duration, printable, size
from swarmd.status import HopRow, PeerRow, Status

PEER_ID_TAIL = 8  # characters; the beginnings of peer ids are all alike
PIPED_WIDTH = 160  # columns when the output is no terminal, so that nothing is cut off there

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


def console(stream: TextIO | None = None) -> Console:
    """The terminal (stdout unless another stream is given), or a wide page when the output goes elsewhere. Nothing is
    taken as markup, and what the stream's encoding lacks is shown as its escape.
    """
    stream = stream or sys.stdout
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")
    plain = Console(file=stream, highlight=False, markup=False, emoji=False)
    if not plain.is_terminal:
        plain = Console(file=stream, highlight=False, markup=False, emoji=False, width=PIPED_WIDTH)
    return plain


def words(value: object, style: str = "", limit: int = CELL_LIMIT) -> Text:
    """A cell, or a line, of words that may come from anyone."""
    return Text(printable(value, limit), style=style)


def render_status(status: Status) -> RenderableType:
    """The whole daemon at a glance."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in _status_lines(status):
        table.add_row(words(name), value if isinstance(value, Text) else words(value, limit=SENTENCE_LIMIT))
    head = words(_headline(status), f"bold {_STATE_COLOURS.get(status.state, '')}".strip(), SENTENCE_LIMIT)
    notes = [f"waiting: {wait.sentence()}" for wait in status.waits]
    if status.waiting_for and not notes:
        notes = [f"waiting: {status.waiting_for}"]
    notes += [f"warning: {warning}" for warning in status.warnings]
    return Group(head, table, *(words(note, "yellow", SENTENCE_LIMIT) for note in notes))


def _headline(status: Status) -> str:
    """The first line: a word that says whether all is well, and the step or the wait."""
    word = _WORDS.get(status.state, status.state.upper())
    if wait := next(iter(status.waits), None):
        return f"{word}  waiting {duration(wait.seconds)} for {wait.what}"
    if not status.run:
        return word
    left = "" if status.seconds_left is None else f", {duration(status.seconds_left)} left"
    return f"{word}  step {status.step} of {status.steps}{left}"


def _status_lines(status: Status) -> list[tuple[str, str | Text]]:
    lines: list[tuple[str, str | Text]] = [
        ("peer", status.peer_id),
        ("state", _state(status.state)),
        *([("doing", status.doing)] if status.doing else []),
        *([("final state", status.final_state)] if status.final_state else []),
        ("device", status.device),
        ("up", f"{duration(status.uptime_seconds)}, {size(status.memory_bytes)} of memory"),
    ]
    lines += [("address", address) for address in status.addresses]
    if not status.run:
        return lines
    queues = status.queues
    moved = f"{size(status.bytes.sent)} sent, {size(status.bytes.received)} received"
    return [
        ("run", f"{status.run} ({status.model}), fingerprint {status.fingerprint}"),
        *lines,
        ("stage", f"{'none yet' if status.stage is None else status.stage} of {status.stages}"),
        *([("pulling", _transfer(status))] if status.state_bytes_total else []),
        *([("moving", f"to stage {status.moving_to}")] if status.moving_to is not None else []),
        *([("moved because", status.moved_because)] if status.moved_because else []),
        ("step", f"{status.step} of {status.steps}, {status.progress:.0%} of its microbatches done"),
        ("loss", _losses(status)),
        ("speed", f"{status.tokens_per_second:,.0f} tokens/s in the swarm, {_rate(status)} microbatches/s here"),
        ("left", "unknown" if status.seconds_left is None else duration(status.seconds_left)),
        ("queues", f"{queues.forward} forward, {queues.backward} backward, {queues.in_flight} in flight"),
        *([("idle because", queues.idle_because)] if queues.idle_because else []),
        ("traffic", moved),
        ("replicas", ", ".join(f"stage {stage}: {count}" for stage, count in status.peers.items()) or "none"),
        ("ledger", ", ".join(f"{count} {name}" for name, count in status.ledger.items()) or "nothing unusual"),
    ]


def _transfer(status: Status) -> str:
    share = status.state_bytes / status.state_bytes_total
    donors = f"{status.state_donors} donor{'' if status.state_donors == 1 else 's'}"
    return f"{share:.0%} of the stage's state: {size(status.state_bytes)} of {size(status.state_bytes_total)}, {donors}"


def _losses(status: Status) -> str:
    training = "not measured yet" if status.loss is None else f"{status.loss:.4f}"
    validation = "" if status.validation_loss is None else f", validation {status.validation_loss:.4f}"
    return f"{training}{validation}"


def _rate(status: Status) -> str:
    return f"{status.microbatches_per_second:.2f}"


def render_peers(peers: list[PeerRow]) -> RenderableType:
    """The swarm as this daemon sees it, stage by stage."""
    if not peers:
        return Text("no peers known")
    table = Table(header_style="bold")
    for name in ("peer", "stage", "state", "version", "forward", "backward", "in flight", "mb/s", "device", "heard"):
        table.add_column(name, justify="left" if name in ("peer", "state", "device") else "right")
    for peer in sorted(peers, key=lambda peer: (peer.stage is None, peer.stage or 0, peer.peer_id)):
        heard = "itself" if peer.is_self else f"{peer.last_heard_seconds:.1f} s ago"
        table.add_row(
            words(short(peer.peer_id)),
            words("-" if peer.stage is None else peer.stage),
            _state(peer.state, peer.suspect),
            words(peer.version),
            words(peer.forward),
            words(peer.backward),
            words(peer.in_flight),
            words(f"{peer.microbatches_per_second:.2f}"),
            words(peer.device),
            words(heard),
        )
    return table


def render_queues(hops: list[HopRow]) -> RenderableType:
    """The microbatches at this peer, oldest first."""
    if not hops:
        return Text("no microbatch is here")
    table = Table(header_style="bold")
    for name in ("step", "index", "state", "since", "from", "passed to"):
        table.add_column(name, justify="right" if name in ("step", "index", "since") else "left")
    for hop in sorted(hops, key=lambda hop: (hop.step, hop.index)):
        sender = short(hop.custodian) if hop.custodian else "own data"
        table.add_row(
            words(hop.step),
            words(hop.index),
            words(hop.state),
            words(f"{hop.seconds:.1f} s"),
            words(sender),
            words(short(hop.holder) or "-"),
        )
    return table


def render_work(hops: list[HopRow], status: Status) -> RenderableType:
    """The queues, and why the device is idle."""
    queues = status.queues
    why = f"idle: {queues.idle_because}" if queues.idle_because else "computing"
    held = f"{queues.forward} wait for their forward, {queues.backward} for their backward, "
    return Group(
        render_queues(hops),
        Text(f"{held}{queues.downstream} are with the next stage; {size(queues.retained_bytes)} retained"),
        words(why, "yellow" if queues.idle_because else "green", SENTENCE_LIMIT),
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
