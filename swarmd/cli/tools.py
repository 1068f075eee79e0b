"""The commands of `swarmd` beside `start` and `service`: demo, profile, reshape."""

import functools
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from swarmd.cli.reporting import reported, warn
from swarmd.command_line import Debug
from swarmd.completion import preset
from swarmd.daemon.home import Home
from swarmd.daemon.remembered import RememberedRun
from swarmd.errors import ConfigError
from swarmd.memory import grow_segments
from swarmd.printable import printable

DEMO_EXAMPLES = """
\b
Examples:
  swarmd demo                                      6 daemons, 3 stages: about three minutes on two cores
  swarmd demo --peers 4 --stages 2 --steps 50      a smaller, shorter one
  swarmd demo --kill-every 20                      the same while a daemon dies and returns now and then
  swarmd demo --json > result.json                 figures on stdout, progress on stderr
"""

PROFILE_EXAMPLES = """
\b
Examples:
  swarmd profile --output laptop.json              this machine's CPU, daemons of one thread
  swarmd profile --device cuda:0 --output box.json its first GPU
  swarmctl plan --model tiny --peers 6xlaptop.json --one-machine
"""


def demo(
    peers: Annotated[int, typer.Option(metavar="N", min=1, help="Daemons to start.")] = 6,
    stages: Annotated[int | None, typer.Option(metavar="S", min=1, help="Stages. Default: the model's.")] = None,
    steps: Annotated[int | None, typer.Option(metavar="N", min=1, help="Steps. Default: the model's.")] = None,
    model: Annotated[str, typer.Option(metavar="NAME|FILE", help="What to train.", autocompletion=preset)] = "tiny",
    home: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the daemons live. Default: a fresh temporary directory.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout; progress on stderr.")] = False,
    kill_every: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", min=1, help="Kill a daemon so often, at random, and start it again."),
    ] = None,
    timeout: Annotated[float, typer.Option(metavar="S", min=1, help="Give up after this many seconds.")] = 3600,
    uneven: Annotated[
        bool, typer.Option("--uneven", help="All spare daemons start at stage 0; they go where they are needed.")
    ] = False,
    debug: Debug = False,
) -> int:
    """Start a whole swarm on this machine, watch it train, and see what it learned."""

    def run() -> int:
        from swarmd.demo.options import DemoOptions
        from swarmd.demo.run import run_demo

        options = DemoOptions(
            peers=peers,
            model=model,
            stages=stages,
            steps=steps,
            home=home,
            as_json=as_json,
            timeout_s=timeout,
            kill_every_s=kill_every,
            uneven=uneven,
        )
        return run_demo(options)

    return reported(run, debug=debug)


def profile(
    output: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Write it there. Default: print it on stdout.")
    ] = None,
    device: Annotated[str, typer.Option(metavar="cpu|cuda:N", help="What to measure.")] = "cpu",
    threads: Annotated[int, typer.Option(metavar="N", min=1, help="CPU threads of a daemon.")] = 1,
    debug: Debug = False,
) -> int:
    """Measure how fast this machine computes, for `swarmctl plan`. Takes a minute; nothing else should run."""

    def run() -> int:
        if output is not None:
            check_output(output)
        if device != "cpu":
            grow_segments()
        from swarmd.stage.profile import measure_profile

        measured = measure_profile(
            device, threads, told=lambda line: print(f"measuring: {printable(line)}", file=sys.stderr)
        )
        if output is None:
            print(json.dumps(measured))
            return 0
        measured["name"] = output.stem
        try:
            output.write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            print(json.dumps(measured))  # minutes of measuring are not lost
            raise ConfigError(f"can't write {output} ({error.strerror}); the profile is on stdout instead.") from error
        peers = printable(shlex.quote(f"4x{output}"))
        print(f"{printable(output)}: use it as --peers {peers} in `swarmctl plan`.", file=sys.stderr)
        return 0

    return reported(run, debug=debug)


def check_output(path: Path) -> None:
    """Raises ConfigError if a file can't be written there, before what it is for is measured."""
    folder = path.resolve().parent
    try:
        if path.is_dir():
            raise ConfigError(f"--output {path} is a folder; name a file in it, as {path / 'machine.json'}.")
        if not folder.is_dir():
            raise ConfigError(f"--output {path}: there is no folder {folder}; make it, or choose another --output.")
        writable = os.access(path, os.W_OK) if path.exists() else os.access(folder, os.W_OK | os.X_OK)
    except OSError as error:
        raise ConfigError(f"can't use --output {path} ({error.strerror}); choose another.") from error
    if not writable:
        raise ConfigError(f"--output {path} may not be written; choose another, or change its rights.")


def reshape(
    homes: Annotated[list[Path], typer.Argument(metavar="HOME...", help="Homes that hold the run's checkpoints.")],
    stages: Annotated[int, typer.Option(metavar="S", min=1, help="Stages of the new run.")],
    home: Annotated[Path, typer.Option(metavar="DIR", help="Where the new run's checkpoints go: a new home.")],
    debug: Debug = False,
) -> int:
    """Cut a run's checkpoints into another number of stages, to go on with `swarmd start --resume --home DIR`."""
    return reported(lambda: _reshape([Home(path) for path in homes], stages, Home(home)), debug=debug)


def _reshape(sources: list[Home], stages: int, home: Home) -> int:
    """Writes the new run's checkpoints and settings into an empty home. Raises ConfigError."""
    from swarmd import settings
    from swarmd.config import fingerprint, to_plain
    from swarmd.daemon.kept_records import cut_anew
    from swarmd.daemon.patience import said_if_long
    from swarmd.daemon.prolonging import remembered_run
    from swarmd.stage.reshape import reshape as reshaped

    run = remembered_run(sources[0])
    target = settings.with_overrides(run, stages=stages)
    with home.locked():
        if home.has_checkpoints():
            raise ConfigError(f"{home.path} holds checkpoints already; choose another --home.")
        try:
            places = [source.checkpoints for source in sources]
            with said_if_long(f"cutting the checkpoints of {run.name} into {stages} stages", warn):
                version = reshaped(places, run, target, home.checkpoints, functools.partial(cut_anew, run), warn)
            known = sources[0].remembered_run()
            cut = RememberedRun(
                run=to_plain(target),
                fingerprint=fingerprint(target),
                data=known.data if known is not None else None,
                tokenizer=known.tokenizer if known is not None else None,
            )
            home.remember_run(cut)
        except OSError as error:
            raise ConfigError(f"can't write {home.path} ({error.strerror}); choose another --home.") from error
    place = printable(shlex.quote(str(home.path)))
    print(f"version {version} in {stages} stages: go on with `swarmd start --resume --home {place}`")
    return 0
