"""The demo's display while it runs: a live table on a terminal, a line now and then elsewhere. Always on stderr.

Relies on rich. It is given the daemons and the run, and only reads them.
"""

import sys
from collections.abc import Sequence
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from swarmctl.render import short
from swarmd.config import RunConfig
from swarmd.demo.process import DaemonProcess
from swarmd.layout import Column, FittedTable, Folded, Sentence
from swarmd.printable import SENTENCE_LIMIT, duration, printable_lines
from swarmd.screen import console, words
from swarmd.status import Status

LINES_PER_RUN = 20  # progress lines over the whole run when there is no terminal
LINE_INTERVAL_S = 30.0  # but a sign of life at least this often
BAR_WIDTH = 34  # columns; a narrow terminal has 40


class View(Protocol):
    """Shows progress, says sentences between, and is closed before anything else is printed."""

    def show(self, peers: Sequence[DaemonProcess], elapsed_s: float) -> None: ...

    def say(self, text: str) -> None: ...

    def close(self) -> None: ...


def make_view(run: RunConfig) -> View:
    """A table that renews itself on a terminal, else lines."""
    terminal = console(sys.stderr)
    return LiveTable(run, terminal) if terminal.is_terminal else Lines(run)


def leader(peers: Sequence[DaemonProcess]) -> Status | None:
    """The status that knows most of the swarm: of the newest version and the furthest step."""
    known = [peer.status for peer in peers if peer.status is not None]
    return max(known, key=lambda status: (status.version, status.progress), default=None)


def fraction_done(status: Status) -> float:
    """The share of the run that is done, 0 to 1."""
    return min(1.0, (status.version + min(status.progress, 1.0)) / max(status.steps, 1))


class LiveTable:
    """Every peer a row, the swarm below."""

    def __init__(self, run: RunConfig, console: Console) -> None:
        self._run = run
        self._console = console
        self._live = Live(console=console, auto_refresh=False)
        self._live.start()

    def show(self, peers: Sequence[DaemonProcess], elapsed_s: float) -> None:
        self._live.update(Folded(Group(peer_table(peers), swarm_lines(self._run, peers, elapsed_s))), refresh=True)

    def say(self, text: str) -> None:
        self._console.print(Text(printable_lines(text)))

    def close(self) -> None:
        self._live.stop()


class Lines:
    """Shows the swarm in lines, for logs and pipes."""

    def __init__(self, run: RunConfig) -> None:
        self._run = run
        self._stride = max(1, run.steps // LINES_PER_RUN)
        self._next_step = 0
        self._next_time_s = 0.0

    def show(self, peers: Sequence[DaemonProcess], elapsed_s: float) -> None:
        status = leader(peers)
        version = status.version if status else -1  # so that the first answer is worth a line
        if elapsed_s < self._next_time_s and version < self._next_step:
            return
        self._next_step = (version // self._stride + 1) * self._stride
        self._next_time_s = elapsed_s + LINE_INTERVAL_S
        self.say(f"{elapsed_s:6.1f} s  {one_line(self._run, status)}")

    def say(self, text: str) -> None:
        print(printable_lines(text), file=sys.stderr, flush=True)

    def close(self) -> None:
        pass


def one_line(run: RunConfig, status: Status | None) -> str:
    """The swarm in one line of text."""
    if status is None:
        return "the first daemon starts"
    if status.waiting_for:
        return f"waiting: {status.waiting_for}"
    loss = "-" if status.loss is None else f"{status.loss:.3f}"
    left = "" if status.seconds_left is None else f"  {duration(status.seconds_left)} left"
    return f"step {status.version}/{run.steps}  loss {loss}  {status.tokens_per_second:,.0f} tokens/s{left}"


_COLUMNS = (
    Column("peer"),
    Column("id", 5, right=False),
    Column("stage"),
    Column("state", right=False),
    Column("forward", 6),
    Column("backward", 7),
    Column("in flight", 4),
    Column("version", 1),
    Column("microbatches/s", 2),
    Column("starts", 3),
)


def peer_table(peers: Sequence[DaemonProcess]) -> FittedTable:
    """A row for each daemon."""
    return FittedTable(_COLUMNS, [_peer_row(peer) for peer in peers], "a wider terminal shows them")


def _peer_row(peer: DaemonProcess) -> tuple[Text, ...]:
    status = peer.status
    stage = peer.stage if status is None or status.stage is None else status.stage
    number, starts = words(peer.number), words(peer.starts)
    if status is None:
        return (number, words(""), words(stage), _state(peer), *[words("")] * 5, starts)
    return (
        number,
        words(short(status.peer_id)),
        words(stage),
        _state(peer),
        words(status.queues.forward),
        words(status.queues.backward),
        words(status.queues.in_flight),
        words(status.version),
        words(f"{status.microbatches_per_second:.2f}"),
        starts,
    )


def _state(peer: DaemonProcess) -> Text:
    if peer.exit_code is not None:
        return Text("done", style="green") if peer.exit_code == 0 else Text(peer.how_it_ended(), style="red")
    if not peer.runs:
        return Text("")
    if peer.status is None:
        return Text("starting", style="yellow")
    if not peer.answers:
        return words(f"{peer.status.state} (silent)", "yellow")
    return words(peer.status.state, "green" if peer.status.state == "serving" else "")


def swarm_lines(run: RunConfig, peers: Sequence[DaemonProcess], elapsed_s: float) -> RenderableType:
    """The swarm's figures and a bar."""
    status = leader(peers)
    head = f"{run.name}  {duration(elapsed_s)}  {one_line(run, status)}"
    if status is None:
        return Sentence(words(head, limit=SENTENCE_LIMIT))
    if status.validation_loss is not None:
        head += f"  validation {status.validation_loss:.3f}"
    done = fraction_done(status)
    bar = Text("━" * round(BAR_WIDTH * done), style="green")
    bar.append("━" * (BAR_WIDTH - len(bar)), style="dim").append(f" {done:.0%}", style="default")
    return Group(Sentence(words(head, limit=SENTENCE_LIMIT)), bar)
