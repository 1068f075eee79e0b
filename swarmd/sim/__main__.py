"""`python -m swarmd.sim`: swarms in virtual time, drawn from seeds or written by hand, and what must hold of them.

Prints and parses; what it shows comes from `campaign/` and `faults/named.py`. The commands that measure are in
`tables.py`.
"""

import dataclasses
import json
import sys
import time
from typing import Annotated

import typer
from rich.console import Group
from rich.text import Text

from swarmd.layout import Column, FittedTable, Sentence
from swarmd.printable import SENTENCE_LIMIT, span
from swarmd.screen import show, words
from swarmd.sim.campaign import seeds as campaign
from swarmd.sim.campaign.play import Outcome, play, report
from swarmd.sim.campaign.seeds import Result
from swarmd.sim.faults.named import NAMED
from swarmd.sim.faults.scenario import Scenario
from swarmd.sim.measure import tables

EXIT_FAILED = 1  # a promise was broken
EXIT_USER = 2  # the user must change something
EXIT_INTERRUPTED = 130  # Ctrl-C before all the seeds that were asked for

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Whole swarms in virtual time: production code, a simulated network and simulated machines that fail.",
)

_RUN_EXAMPLES = """
\b
Examples:
  python -m swarmd.sim run                         seeds from 0 on, on two cores, until Ctrl-C
  python -m swarmd.sim run --seeds 500             so many; exit code 1 if a promise was broken
  python -m swarmd.sim run --first 90000 --json    other seeds; one JSON object on stdout at the end
  python -m swarmd.sim run --hostile --seeds 500   with outsiders that say whatever the schema lets them say
"""

_PROVE_EXAMPLES = """
\b
Examples:
  python -m swarmd.sim prove                       ten seeds on two cores, about two minutes
  python -m swarmd.sim prove --seeds 100           exit code 1 if one of them breaks a promise
  python -m swarmd.sim prove --first 7 --seeds 1   one seed again
"""

_REPLAY_EXAMPLES = """
\b
Examples:
  python -m swarmd.sim replay 4711                 the same run again: what broke, and the last events
  python -m swarmd.sim replay 4711 --transcript    everything that happened
  python -m swarmd.sim replay 4711 --shrink        with as few faults as still break the promise
"""

_SCENARIO_EXAMPLES = """
\b
Examples:
  python -m swarmd.sim scenarios                   what there is
  python -m swarmd.sim scenario NAME               play one
  python -m swarmd.sim scenario NAME --transcript  and read what happened
"""

_HOSTILE = "With outsiders: greeted peers that take no part, and say whatever the schema lets them say."


@app.command(epilog=_RUN_EXAMPLES)
def run(
    seeds: Annotated[int | None, typer.Option(metavar="N", min=1, help="So many. Default: until Ctrl-C.")] = None,
    first: Annotated[int, typer.Option(metavar="S", min=0, help="The first seed.")] = 0,
    workers: Annotated[int, typer.Option(metavar="N", min=1, help="Processes.")] = 2,
    shrink: Annotated[bool, typer.Option(help="Look for the faults that matter when a promise breaks.")] = True,
    hostile: Annotated[bool, typer.Option("--hostile", help=_HOSTILE)] = False,
    as_json: tables.AsJson = False,
) -> int:
    """Play one scenario after the other, each drawn from a seed, and tell of every promise that breaks."""

    def tell(result: Result) -> None:
        if result.promise:
            typer.echo("\n".join(["", *result.lines, ""]), err=as_json)

    summary = campaign.run_campaign(
        first,
        seeds,
        workers,
        campaign.drawn(minimal=shrink, hostile=hostile),
        on_result=tell,
        on_progress=lambda line: typer.echo(line, err=True),
    )
    _say(*summary.lines(), err=as_json)
    if as_json:
        typer.echo(json.dumps(summary.plain()))
    if summary.failed:
        return EXIT_FAILED
    return EXIT_INTERRUPTED if summary.interrupted and seeds is not None else 0


@app.command(epilog=_PROVE_EXAMPLES)
def prove(
    seeds: Annotated[int, typer.Option(metavar="N", min=1, help="So many.")] = 10,
    first: Annotated[int, typer.Option(metavar="S", min=0, help="The first seed.")] = 0,
    faults: Annotated[int, typer.Option(metavar="N", min=0, help="That strike each run, at least.")] = 50,
    workers: Annotated[int, typer.Option(metavar="N", min=1, help="Processes.")] = 2,
    as_json: tables.AsJson = False,
    wide: tables.Wide = False,
) -> int:
    """Train for real in virtual time, under dozens of faults a run, and compare with a single process."""
    from swarmd.sim.campaign import proof  # with torch, which takes seconds to load and no other command needs

    results: list[Result] = []

    def tell(result: Result) -> None:
        results.append(result)
        typer.echo(proof.progress(result), err=True)
        if result.lines:
            _say(*result.lines, err=as_json)

    summary = campaign.run_campaign(
        first, seeds, workers, proof.job(faults), on_result=tell, on_progress=lambda line: None
    )
    show(proof.render(results), wide=wide, stream=sys.stderr if as_json else sys.stdout)
    _say(*summary.lines(), *proof.conclusion(results, faults), err=as_json)
    if as_json:
        typer.echo(json.dumps({**summary.plain(), "runs": [dataclasses.asdict(result) for result in results]}))
    if summary.failed or any(proof.is_weak(result, faults) for result in results):
        return EXIT_FAILED
    return EXIT_INTERRUPTED if summary.interrupted else 0


@app.command(epilog=_REPLAY_EXAMPLES)
def replay(
    seed: Annotated[int, typer.Argument(metavar="SEED", min=0, help="As a campaign named it.")],
    transcript: Annotated[bool, typer.Option("--transcript", help="Print everything that happened.")] = False,
    shrink: Annotated[bool, typer.Option("--shrink", help="Look for the faults that matter.")] = False,
    hostile: Annotated[bool, typer.Option("--hostile", help=_HOSTILE)] = False,
) -> int:
    """Play the scenario of a seed again."""
    scenario = campaign.scenario_of(seed, hostile=hostile)
    began = time.monotonic()
    outcome = play(scenario, trace=True)
    _show(scenario, outcome, transcript=transcript, wall_s=time.monotonic() - began)
    if shrink and not outcome.passed:
        typer.echo("\n".join(campaign.explain(scenario, outcome, minimal=True)))
    return 0 if outcome.passed else EXIT_FAILED


@app.command(epilog=_SCENARIO_EXAMPLES)
def scenarios() -> int:
    """List the scenarios that have a name: each was a bug once, or nearly."""
    columns = (Column("scenario", right=False), Column("story", right=False, wraps=True))
    rows = [(words(name), words(it.story, limit=SENTENCE_LIMIT)) for name, it in NAMED.items()]
    show(FittedTable(columns, rows, ""))
    return 0


@app.command(epilog=_SCENARIO_EXAMPLES)
def scenario(
    name: Annotated[str, typer.Argument(metavar="NAME", help="One of `scenarios`.")],
    transcript: Annotated[bool, typer.Option("--transcript", help="Print everything that happened.")] = False,
) -> int:
    """Play a scenario that has a name."""
    if name not in NAMED:
        typer.echo(f"there is no scenario {name}; `python -m swarmd.sim scenarios` lists them.", err=True)
        return EXIT_USER
    began = time.monotonic()
    outcome = play(NAMED[name], trace=True)
    _say(NAMED[name].story)
    _show(NAMED[name], outcome, transcript=transcript, wall_s=time.monotonic() - began)
    return 0 if outcome.passed else EXIT_FAILED


app.command(epilog=tables.SCALE_EXAMPLES)(tables.scale)
app.command(epilog=tables.DETECT_EXAMPLES)(tables.detect)
app.command(epilog=tables.STRAGGLER_EXAMPLES)(tables.straggler)
app.command(epilog=tables.ROUTING_EXAMPLES)(tables.routing)
app.command("square-cube", epilog=tables.SQUARE_CUBE_EXAMPLES)(tables.square_cube)


def _show(played: Scenario, outcome: Outcome, *, transcript: bool, wall_s: float) -> None:
    if transcript:
        typer.echo(outcome.transcript)
    typer.echo("\n".join(report(played, outcome) if outcome.violations else played.text().splitlines()))
    struck = ", ".join(f"{count} {kind}" for kind, count in outcome.struck.items()) or "none"
    held = "every promise held" if outcome.passed else "a promise was broken"
    times = f"{span(outcome.virtual_s)} of virtual time, {span(wall_s)} here"
    _say(
        f"version {outcome.version} of {played.steps} after {times}",
        f"faults: {struck}",
        f"trace {outcome.trace}: {held}",
    )


def _say(*lines: str, err: bool = False) -> None:
    """Prints sentences; no word of them is cut where the terminal ends."""
    shown = (Sentence(Text(line)) for line in lines)
    show(Group(*shown), stream=sys.stderr if err else sys.stdout)


def run_command_line(arguments: list[str]) -> int:
    """Parses and runs; returns the exit code. A mistake in the arguments is one sentence."""
    try:
        result = app(arguments, prog_name="python -m swarmd.sim", standalone_mode=False)
    except typer.TyperException as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(error.format_message())
            return EXIT_USER
        sentence = " ".join(error.format_message().split())
        typer.echo(f"{sentence.rstrip('.')}; see `python -m swarmd.sim --help`.", err=True)
        return EXIT_USER
    except (typer.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    sys.exit(run_command_line(sys.argv[1:]))
