"""More steps for a run that is over or was stopped: which run a founder goes on with, and what people are told.

`--steps N` at a restart from checkpoints gives the run another total (`config.prolonged`). What is committed stays as
it is, the steps after it follow the schedule of the new total. Others follow without options: the new settings say what
the run was called before (`config.lineage`), which is what their homes know it by. Reads the home, changes nothing.
"""

import dataclasses
from collections.abc import Callable

from swarmd.config import RunConfig, fingerprint, lineage, prolonged
from swarmd.daemon.home import Home
from swarmd.daemon.remembered import RememberedRun
from swarmd.daemon.store import read_ledger_tail
from swarmd.errors import ConfigError
from swarmd.schedule import learning_rate_at
from swarmd.settings import check_run, run_from_plain, with_overrides
from swarmd.stage.checkpoint import saved
from swarmd.swarm.history.record import Record

LINES_READ = 8  # of the ledger's end: the last may be torn

Load = Callable[[int | None], RunConfig | None]
"""The run that `--model` names with so many steps (None: its own), or None without `--model`. Raises ConfigError."""


def remembered_run(home: Home) -> RunConfig:
    """The run whose checkpoints a home holds. Raises ConfigError."""
    if (known := home.remembered_run()) is None:
        raise ConfigError(f"{home.path} is the home of no run yet; give --model or --bootstrap, or another --home.")
    return run_from_plain(known.run, f"the settings in {home.run_file}")


def plan_resumed(home: Home, load: Load, steps: int | None) -> tuple[RunConfig, str]:
    """The run that `--resume` goes on with, or begins where nothing is saved; and if it is prolonged by that, a
    sentence about it. `steps`: the new total, None for what it has. Raises ConfigError.
    """
    known, given = home.remembered_run(), load(steps)
    if given is not None and (known is None or _readable(known) is None):
        return given, ""  # nothing to compare it with: where the home's is another run, `RunSearch` says so
    run = remembered_run(home)
    if given is not None and fingerprint(load(run.totals[0]) or given) != lineage(run)[0]:
        return given, ""  # another run: `RunSearch` says so
    if not home.is_checkpointed(known):
        return given or with_overrides(run, steps=steps), ""
    if steps is None:
        if given is not None and given.steps not in run.totals:
            raise ConfigError(
                f"the settings of --model have {given.steps} steps and the run of {home.path} has {run.steps}: add "
                f"--steps {given.steps} to go on with it to so many, or --steps {run.steps} to leave it as it is."
            )
        return run, ""
    return _with_total(home, run, steps)


def _with_total(home: Home, run: RunConfig, steps: int) -> tuple[RunConfig, str]:
    """Raises ConfigError."""
    if steps == run.steps:
        return run, ""
    done = newest_version(home)
    if steps < done:
        raise ConfigError(
            f"the run of {home.path} has done {done} steps already, which is more than --steps {steps}: give at least "
            f"--steps {done}, or leave it out to go on to {run.steps}."
        )
    longer = check_run(prolonged(run, steps), f"run {run.name}")
    how = rates(longer, run.steps, done) if done else "from the newest version on its peers' disks"
    return longer, f"run {run.name} goes on to {steps} steps instead of {run.steps}: {how}"


def newest_version(home: Home) -> int:
    """The newest version that a home knows of, from its checkpoints and its ledger."""
    try:
        versions = [*(version for version, _ in saved(home.checkpoints)), *read_ledger_tail(home.ledger, LINES_READ)]
    except OSError as error:
        raise ConfigError(f"can't read {error.filename or home.path} ({error.strerror}); repair it.") from error
    return max(versions, default=0)


def rates(run: RunConfig, before: int, version: int) -> str:
    """The learning rate before and after the run is prolonged at a version. `before`: the total until then."""
    old = learning_rate_at(run.optimizer, version, before)
    new = learning_rate_at(run.optimizer, version + 1, run.steps)
    after = f"{new:.4g} at step {version + 1} of {run.steps}" if version < run.steps else "and no steps are left"
    return f"learning rate {old:.4g} at step {version} of {before}, {after}"


def beginning(run: RunConfig, record: Record) -> str:
    """A sentence about the return with which a prolonged run begins."""
    before = record.total_steps or run.totals[0]
    return f"run {run.name} was prolonged from {before} to {run.steps} steps: {rates(run, before, record.step)}"


def mismatch(home: Home, known: RememberedRun, run: RunConfig) -> str:
    """Why a home with checkpoints can't be used for a run that isn't its own, and what to do."""
    theirs, name = f"run {fingerprint(run)} ({run.name})", f"run {known.fingerprint}"
    if (ours := _readable(known)) is not None:
        if fingerprint(run) in lineage(ours):
            return (
                f"{home.path} holds checkpoints of {theirs} after it was prolonged to {ours.steps} steps, and it is to "
                f"have {run.steps} here: whoever founds it must give --steps {ours.steps} --resume."
            )
        if lineage(ours)[0] == fingerprint(dataclasses.replace(run, steps=ours.totals[0], earlier=())):
            return (
                f"{home.path} holds checkpoints of this run with {ours.steps} steps, and it is to have {run.steps} "
                f"here: whoever founds it must give --steps {run.steps} --resume to go on with it to so many; "
                "or choose another --home."
            )
    return (
        f"{home.path} holds checkpoints of {name}, and this is {theirs}: choose another --home, or move "
        f"{home.checkpoints} away."
    )


def _readable(known: RememberedRun) -> RunConfig | None:
    """The settings that a home remembers, if this release can read them."""
    try:
        return run_from_plain(known.run)
    except ConfigError:
        return None
