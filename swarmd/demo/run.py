"""`swarmd demo`: a whole swarm on this machine is run in an empty directory, and its result judged.

Whatever the demo shows, a person can do by hand.
"""

import asyncio
import dataclasses
import json
import sys
import tempfile
from pathlib import Path

from swarmd import exits
from swarmd.config import RunConfig
from swarmd.daemon.patience import said_if_long
from swarmd.demo.options import DemoOptions
from swarmd.demo.process import DaemonProcess
from swarmd.demo.report import DemoResult, print_report, with_sample
from swarmd.demo.swarm import Demo
from swarmd.demo.view import make_view
from swarmd.errors import ConfigError
from swarmd.printable import counted, printable


def run_demo(options: DemoOptions) -> int:
    """Runs the whole demo; returns the exit code. Raises ConfigError, DemoFailed."""
    from swarmd import settings

    run = settings.with_overrides(settings.load_run(options.model), steps=options.steps, stages=options.stages)
    if options.peers < run.model.stages:
        raise ConfigError(f"{run.model.stages} stages need at least as many peers; give --peers {run.model.stages}.")
    if options.kill_every_s is not None and options.peers == run.model.stages:
        raise ConfigError(
            f"a stage whose only peer is killed loses its work; give --peers {run.model.stages + 1} or more "
            "with --kill-every."
        )
    home = prepare_home(options.home)
    print(f"the daemons live in {printable(home)}", file=sys.stderr)
    stages = run.model.stages
    places = [
        max(0, number + stages - options.peers) if options.uneven else number % stages
        for number in range(options.peers)
    ]
    peers = [DaemonProcess(number, stage, home / f"peer-{number}") for number, stage in enumerate(places)]
    view = make_view(run)
    try:
        result = asyncio.run(Demo(options, run, home, peers, view).run())
    finally:
        view.close()
    if result is None:
        return exits.FAILED
    with said_if_long("the model writes a sample", lambda line: print(line, file=sys.stderr, flush=True)):
        result = with_sample(result, run)
    if options.as_json:
        print(json.dumps(dataclasses.asdict(result)))
    else:
        print_report(result)
    return verdict(run, result)


def prepare_home(given: Path | None) -> Path:
    """A directory without a swarm in it. Raises ConfigError."""
    if given is None:
        return Path(tempfile.mkdtemp(prefix="swarmd-demo-"))
    home = given.expanduser().absolute()
    try:
        home.mkdir(parents=True, exist_ok=True)
        held = any(home.glob("peer-*"))
    except OSError as error:
        raise ConfigError(f"can't use {home} as home ({error.strerror}); choose another --home.") from error
    if held:
        raise ConfigError(f"{home} already holds another run; name another --home or remove it.")
    return home


def verdict(run: RunConfig, result: DemoResult) -> int:
    """0 only if all steps were committed, the loss fell, nothing was lost or counted twice, and the checkpoints make a
    model that writes.
    """
    trouble = None
    if result.steps < run.steps:
        trouble = f"only {result.steps} of {run.steps} steps were committed"
    elif not result.fell:
        trouble = "the loss did not fall"
    elif result.ledger["lost"] or result.ledger["duplicated"]:
        trouble = f"{counted(result.ledger['lost'], 'microbatch')} lost, {result.ledger['duplicated']:,} counted twice"
    elif result.sample is None:
        trouble = f"the final checkpoints gave no sample ({result.sample_error})"
    if trouble is None:
        return exits.DONE
    print(f"swarmd: {printable(trouble)}.", file=sys.stderr)
    return exits.FAILED
