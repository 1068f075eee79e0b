"""The demo's report at its end: the loss curve, the figures, and a sample of what the model learned.

Relies on the ledgers and checkpoints that the daemons left in their homes, on plotext for the curve and on
`stage.export` for the sample. It judges whether the loss fell.
"""

import dataclasses
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from swarmd.config import RunConfig
from swarmd.demo.process import DaemonProcess
from swarmd.files import parse_json
from swarmd.printable import counted, duration, ledger_words, printable

LAST_STEPS = 10  # one step's loss is noisy; the last is the mean of this many
SAMPLE_TOKENS = 300  # a few lines of text, a few seconds on one core
PLOT_WIDTH, PLOT_HEIGHT = 76, 16  # characters; fits an 80-column terminal

LedgerLine = dict[str, Any]


@dataclass(frozen=True)
class DemoResult:
    """The result of a demo; `--json` prints it as one object."""

    home: str
    run: str
    wall_seconds: float  # from the first daemon's start until the last one ended
    listening_seconds: float  # from the first daemon's start until its status named an address
    steps: int  # committed, as the ledgers have it
    losses: list[float | None]  # by step, nats per token; null for a skipped step
    first_loss: float | None
    last_loss: float | None  # mean of the last steps
    validation_loss: float | None
    tokens_per_second: float  # of the training itself, from the ledgers
    ledger: dict[str, int]  # resent, subtracted, lost, duplicated
    peers: list[dict[str, Any]]
    fell: bool
    kills: int = 0  # daemons killed and started again (--kill-every)
    sample: str | None = None
    sample_error: str | None = None


def read_ledgers(homes: Sequence[Path]) -> list[LedgerLine]:
    """One line per step and stage, in order, from whichever daemon has it. Torn lines are passed over."""
    found: dict[tuple[int, int], LedgerLine] = {}
    for home in homes:
        for name in ("ledger.jsonl.1", "ledger.jsonl"):
            path = home / name
            if path.exists():
                for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                    _add_line(found, line)
    return [found[key] for key in sorted(found)]


def _add_line(found: dict[tuple[int, int], LedgerLine], text: str) -> None:
    try:
        line = parse_json(text)
    except ValueError:
        return
    if isinstance(line, dict) and type(line.get("step")) is int and type(line.get("stage")) is int:
        found.setdefault((line["step"], line["stage"]), line)


def judge(
    run: RunConfig,
    home: Path,
    peers: Sequence[DaemonProcess],
    wall_seconds: float,
    listening_seconds: float,
    kills: int = 0,
) -> DemoResult:
    """Gathers the figures of a demo whose daemons have ended."""
    stage_lines = read_ledgers([peer.home.path for peer in peers])
    lines = list({line["step"]: line for line in reversed(stage_lines)}.values())[
        ::-1
    ]  # what is the swarm's is in each
    losses = [_number(line.get("loss")) for line in lines]
    finite = [loss for loss in losses if loss is not None]
    last = finite[-_last_steps(len(finite)) :]
    first_loss = finite[0] if finite else None
    last_loss = fmean(last) if last else None
    steady = lines[1:] or lines  # the first step's seconds contain the wait for the swarm to be complete
    seconds = sum(_number(line.get("seconds")) or 0.0 for line in steady)
    tokens = sum(_number(line.get("tokens")) or 0.0 for line in steady)
    return DemoResult(
        home=str(home),
        run=run.name,
        wall_seconds=round(wall_seconds, 2),
        listening_seconds=round(listening_seconds, 2),
        steps=len(lines),
        losses=losses,
        first_loss=first_loss,
        last_loss=last_loss,
        validation_loss=_validation_loss(lines, peers),
        tokens_per_second=round(tokens / seconds, 1) if seconds > 0 else 0.0,
        ledger={
            name: int(sum(_number(line.get(name)) or 0 for line in stage_lines))
            for name in ("resent", "subtracted", "lost", "duplicated")
        },
        peers=[_peer_facts(peer) for peer in peers],
        fell=first_loss is not None and last_loss is not None and last_loss < first_loss,
        kills=kills,
    )


def _last_steps(steps: int) -> int:
    """The number of steps that the last loss is the mean of: in a short run only the later half."""
    return min(LAST_STEPS, max(1, steps // 2))


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _validation_loss(lines: Sequence[LedgerLine], peers: Sequence[DaemonProcess]) -> float | None:
    """The newest one: from the ledgers where they have it, else what a daemon last said."""
    for line in reversed(lines):
        if (loss := _number(line.get("validation_loss"))) is not None:
            return loss
    said = [peer.status for peer in peers if peer.status is not None and peer.status.validation_loss is not None]
    return max(said, key=lambda status: status.version).validation_loss if said else None


def _peer_facts(peer: DaemonProcess) -> dict[str, Any]:
    return {
        "number": peer.number,
        "stage": peer.stage,
        "peer_id": peer.status.peer_id if peer.status else None,
        "version": peer.status.version if peer.status else 0,
        "exit_code": peer.exit_code,
        "home": str(peer.home.path),
    }


Generator = Callable[[Sequence[Path], RunConfig, str, int], str]


def with_sample(result: DemoResult, run: RunConfig, generate: Generator | None = None) -> DemoResult:
    """The result with a text that the trained model wrote, or with the reason why there is none."""
    prompt = "def " if run.data.source == "stdlib" else "The "
    directories = [Path(peer["home"]) / "checkpoints" for peer in result.peers]
    try:
        sample = (generate or _default_generator())(directories, run, prompt, SAMPLE_TOKENS)
    except Exception as error:  # noqa: BLE001 - the figures are worth showing even so
        return dataclasses.replace(result, sample_error=f"{type(error).__name__}: {error}")
    return dataclasses.replace(result, sample=sample if sample.startswith(prompt) else prompt + sample)


def _default_generator() -> Generator:
    import torch  # here: it is better paid for after training than before

    from swarmd.stage.export import generate

    torch.set_num_threads(1)  # a token is too little work to share, and threads that wait for each other take the cores
    return generate


def print_report(result: DemoResult) -> None:
    """Prints the report for a person, on stdout."""
    if result.losses:
        print(loss_curve(result.losses, coloured=sys.stdout.isatty()))
    print(
        f"loss     {_loss(result.first_loss)} at the first step, {_loss(result.last_loss)} at the end "
        f"(mean of the last {_last_steps(result.steps)}), validation {_loss(result.validation_loss)}"
    )
    print(
        f"time     {duration(result.wall_seconds)} from the first daemon's start, "
        f"{counted(result.steps, 'step')}, {result.tokens_per_second:,.0f} tokens/s"
    )
    print(f"ledger   {ledger_words(result.ledger)}")
    if result.kills:
        print(f"kills    {counted(result.kills, 'daemon')} killed and started again while it trained")
    print(f"files    {printable(result.home)}/peer-*: swarmd.log, ledger.jsonl, checkpoints/")
    if result.sample is not None:
        print("sample   written by the model of the final checkpoints:\n")
        print("\n".join(f"    {line}" for line in _fit_for_a_terminal(result.sample).splitlines()))
    else:
        print(f"sample   none could be generated: {printable(result.sample_error)}")


def _loss(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"


def _fit_for_a_terminal(text: str) -> str:
    """A model's text without what could confuse a terminal."""
    return "".join(
        letter if (letter.isprintable() and letter != "\ufffd") or letter in "\n\t" else "·" for letter in text
    )


def loss_curve(losses: Sequence[float | None], *, coloured: bool) -> str:
    """The training loss by step, drawn with characters."""
    import plotext

    points = [(step, loss) for step, loss in enumerate(losses, start=1) if loss is not None]
    figure = plotext.figure
    figure.clear()
    figure.plot_size(PLOT_WIDTH, PLOT_HEIGHT)
    figure.title("training loss by step, nats per token")
    figure.draw(figure.signal([step for step, _ in points], [loss for _, loss in points]).lines())
    drawn = str(figure.build())
    return drawn if coloured else str(plotext.uncolorize(drawn))
