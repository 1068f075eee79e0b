"""`python -m benchmarks.recovery`: how long a swarm needs when someone that matters is killed with kill -9.

Real daemons on this machine, three stages of two, devices of a set speed (see `paced`); nobody moves for balance.
Killed are a tail, the step's conductor, and the leader of a stage's round, just as that begins; each is started
again two seconds later. At last both replicas of the middle stage go, disks and all, and nobody comes in their place:
after `stage_lost_timeout` the others bring the stage back from their copies of its checkpoint. Seconds are from the
kill. Exits 0 only if nothing was lost or counted twice.
"""

import argparse
import asyncio
import dataclasses
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

import uvloop
from rich.console import Group, RenderableType

from benchmarks.chaos.__main__ import RUN as CHAOS_RUN
from benchmarks.chaos.fleet import Daemon, Fleet, Pace
from benchmarks.chaos.outcome import Ledgers, check_ledgers, read_lines
from benchmarks.chaos.trial import say, until
from benchmarks.forms import add_forms, seconds, sentence, table
from benchmarks.toml import as_toml
from swarmd.layout import Column
from swarmd.printable import counted, ledger_words
from swarmd.screen import show
from swarmd.status import Status
from swarmd.swarm.membership.order import leader_order

PACE = Pace(0.1, 0.2)  # seconds per microbatch: a step takes about 9 s
STAGES, REPLICAS, MIDDLE = 3, 2, 1
RUN = dataclasses.replace(CHAOS_RUN, name="recovery", checkpoint_every=2)
POLL_S, BOUND_S, DOWN_S = 0.05, 300.0, 2.0
STEPS_BEFORE = 4  # the first kill; the first steps hold the start-up


@dataclass(frozen=True)
class Recovery:
    """After one kill. Seconds from then."""

    killed: str
    commit_s: float  # until a step was committed
    step_s: float  # from the commit before the kill to that one
    at_work_s: float | None  # until the victim, started again, serves and has done a microbatch
    void: int = 0  # steps that were committed before and are done again


class Watch:
    """Looks at all daemons, and remembers when it saw which record first."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.records: dict[str, tuple[float, int]] = {}  # hash -> loop time, version

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.gather(*(daemon.poll() for daemon in self._fleet.daemons if daemon.runs))
            now = asyncio.get_running_loop().time()
            for status in self._statuses():
                self.records.setdefault(status.record, (now, status.version))
            await asyncio.sleep(POLL_S)

    def _statuses(self) -> list[Status]:
        return [it.status for it in self._fleet.daemons if it.runs and it.answers and it.status is not None]

    @property
    def newest(self) -> tuple[float, int]:
        """The time at which the last record was seen, and its version."""
        return max(self.records.values(), default=(0.0, 0))

    async def next_record(self) -> tuple[float, int]:
        """The next one after those seen so far. Raises TimeoutError."""
        known = len(self.records)
        await wait_until(lambda: len(self.records) > known)
        return list(self.records.values())[known]

    def all_at_work(self) -> bool:
        return all(at_work(daemon) for daemon in self._fleet.daemons)

    def conductor(self) -> Daemon | None:
        """The peer that most name."""
        named = [status.conductor for status in self._statuses()]
        return self._known_as(max(set(named), key=named.count)) if named else None

    def round_leader(self) -> Daemon | None:
        """The daemon that leads the middle stage's round, once that begins."""
        replicas = [it.status.peer_id for it in self._fleet.of_stage(MIDDLE) if it.status is not None]
        for status in self._statuses():
            if status.progress >= 1.0 and status.version == self.newest[1]:
                return self._known_as(leader_order(status.step, MIDDLE, replicas, replicas)[0])
        return None

    def _known_as(self, peer: str) -> Daemon | None:
        return next((it for it in self._fleet.daemons if it.status is not None and it.status.peer_id == peer), None)


def at_work(daemon: Daemon) -> bool:
    """True if it serves, and has done something since its start."""
    status = daemon.status
    busy = status is not None and status.state == "serving" and status.microbatches_done > 0
    return daemon.runs and daemon.answers and busy


async def wait_until(holds: Callable[[], bool]) -> None:
    """Raises TimeoutError if it doesn't come to hold."""
    if not await until(holds, BOUND_S, POLL_S):
        raise TimeoutError("the swarm does not go on")


async def kill_one(
    fleet: Fleet, watch: Watch, name: str, find: Callable[[], Daemon | None], delay_s: float
) -> Recovery:
    """Kills whom `find` finds, some time after a commit, and starts it again."""
    await wait_until(watch.all_at_work)
    before, _ = await watch.next_record()
    await asyncio.sleep(delay_s)
    await wait_until(lambda: find() is not None)
    victim = find()
    assert victim is not None, "nothing happened since"
    loop = asyncio.get_running_loop()
    say(f"killing the {name}: daemon {victim.number}")
    killed = loop.time()
    victim.kill()
    commit = asyncio.create_task(watch.next_record())
    await victim.ended()
    await asyncio.sleep(DOWN_S)
    await fleet.restart(victim)
    await wait_until(lambda: at_work(victim))
    back = loop.time()
    committed, _ = await commit
    return Recovery(name, committed - killed, committed - before, back - killed)


async def kill_stage(fleet: Fleet, watch: Watch) -> Recovery:
    """Kills the middle stage with its disks, when others have copies of a checkpoint; nobody comes instead."""
    await wait_until(watch.all_at_work)
    await wait_until(lambda: all(_has_copy(daemon) for daemon in fleet.daemons if daemon.stage != MIDDLE))
    before, version = await watch.next_record()
    say("killing the middle stage, disks and all")
    killed = asyncio.get_running_loop().time()
    victims = fleet.of_stage(MIDDLE)
    for victim in victims:
        victim.kill()
    for victim in victims:
        await victim.ended()
        victim.home.path.rename(victim.home.path.with_name(f"{victim.home.path.name}-lost"))  # with its ledger
    returned, earlier = await watch.next_record()
    say(f"back to version {earlier} after {returned - killed:.1f} s")
    committed, _ = await watch.next_record()
    return Recovery("middle stage", committed - killed, committed - before, None, version - earlier)


def _has_copy(daemon: Daemon) -> bool:
    """True if two stages are on its disk."""
    return len({path.name for path in daemon.home.checkpoints.glob("step-*/stage-*.json")}) > 1


async def measure(home: Path, times: int) -> tuple[float, list[Recovery], list[str]]:
    """Seconds of an undisturbed step, every recovery, and what promises were broken."""
    fleet = Fleet(home, STAGES, REPLICAS, PACE)
    (home / "run.toml").write_text(as_toml(RUN))
    watch = Watch(fleet)
    try:
        await fleet.found(home / "run.toml")
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(watch.run())
            say(f"training until version {STEPS_BEFORE}")
            await wait_until(lambda: watch.all_at_work() and watch.newest[1] >= STEPS_BEFORE)
            commits = [time_s for time_s, version in watch.records.values() if version > 1]
            usual = median(later - earlier for earlier, later in pairwise(commits))
            found = []
            for _ in range(times):
                tails = fleet.of_stage(STAGES - 1)
                found.append(await kill_one(fleet, watch, "tail", lambda: tails[0], usual / 2))  # noqa: B023
                found.append(await kill_one(fleet, watch, "conductor", watch.conductor, usual / 2))
                found.append(await kill_one(fleet, watch, "round leader", watch.round_leader, 0.0))
            found.append(await kill_stage(fleet, watch))
            watching.cancel()
        bad = await fleet.stop()
        return (
            usual,
            found,
            [f"daemon {number} did not end in good order" for number in bad if not _gone(fleet, number)],
        )
    finally:
        await fleet.close()


def _gone(fleet: Fleet, number: int) -> bool:
    return not fleet.daemons[number].home.path.exists()


_COLUMNS = (
    Column("killed", right=False),
    Column("times", 3),
    Column("next commit"),
    Column("that step took", 2),
    Column("at work again", 1),
    Column("steps done again", 4),
)


def render(usual: float, found: list[Recovery], ledgers: Ledgers, problems: list[str]) -> RenderableType:
    """The figures for a person: medians over kills of the same."""
    names = dict.fromkeys(it.killed for it in found)
    rows = [_cells(name, [it for it in found if it.killed == name]) for name in names]
    return Group(
        table(_COLUMNS, rows, "seconds from the kill"),
        sentence(f"a step without a kill takes {usual:.1f} s"),
        sentence(f"{counted(ledgers.steps, 'step')}: {ledger_words(ledgers.counts)}"),
        *(sentence(f"FAILED: {problem}") for problem in problems),
        *([] if problems else [sentence("passed")]),
    )


def _cells(name: str, kills: list[Recovery]) -> tuple[object, ...]:
    again = [it.at_work_s for it in kills if it.at_work_s is not None]
    return (
        name,
        len(kills),
        seconds(median(it.commit_s for it in kills)),
        seconds(median(it.step_s for it in kills)),
        seconds(median(again) if again else None),
        max(it.void for it in kills),
    )


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recovery", description=__doc__)
    parser.add_argument("--times", type=int, default=3, help="each is killed, but the middle stage (default 3)")
    add_forms(parser)
    arguments = parser.parse_args()
    if arguments.times < 1:
        print("--times must be positive.", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="swarmd-recovery-") as directory:
        home = Path(directory)
        usual, found, problems = uvloop.run(measure(home, arguments.times))
        homes = sorted(home.glob("peer-*"))
        steps = max(line["step"] for line in read_lines(homes[0]))
        ledgers = check_ledgers(homes, RUN, steps)
    problems += [
        f"{ledgers.counts[name]} microbatches {name}" for name in ("lost", "duplicated") if ledgers.counts[name]
    ]
    problems += ledgers.problems
    if arguments.json:
        rows = [dataclasses.asdict(it) for it in found]
        print(json.dumps({"step_s": usual, "recoveries": rows, **ledgers.counts, "failures": problems}, indent=2))
    else:
        show(render(usual, found, ledgers, problems), wide=arguments.wide)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
