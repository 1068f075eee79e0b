"""A small swarm of real daemons that is attacked, and what can be seen of it from outside: its status, its ledgers, its
processes. Nothing here looks into a daemon.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Container, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import psutil

from swarmd.config import CodecConfig, DataConfig, ModelConfig, OptimizerConfig, RunConfig
from tests.e2e.swarm import END_SECONDS, POLL_SECONDS, Daemon, Swarm, swarm
from tests.e2e.test_training import write_settings

RUN = RunConfig(
    name="hostile",
    model=ModelConfig(vocabulary=256, hidden=32, ffn=64, heads=2, layers=3, stages=3, sequence_length=32),
    data=DataConfig(source="stdlib"),
    optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=10),
    codecs=CodecConfig("fp32", "fp32", "fp32"),
    steps=100_000,  # it goes on for as long as it is attacked
    sequences_per_step=8,
    sequences_per_microbatch=2,
    validate_every=0,
    checkpoint_every=20,
    rebalance_seconds=0.0,
    seed=0,
)
SLOW_S = 0.1  # more for each forward: about 1.4 steps a second, and little CPU
STATUS_S = 5.0  # for a daemon to say how it is; one that doesn't counts as deaf
WHOLE = RUN.sequences_per_step // RUN.sequences_per_microbatch  # microbatches of a step
ZERO_DIGEST = "0" * 16  # of parameters that are all zero
GREW_MB = 50.0  # in memory that is a harm: an idle daemon's moves by a few
NORM_TIMES = 30.0  # more than any honest gradient's norm before is a harm


@dataclass(frozen=True)
class Line:
    """A step in a ledger, as far as it matters here."""

    record: str
    microbatches: int
    skipped: bool
    forked: bool
    amiss: int  # indices lost or counted twice
    grad_norm: float
    digest: str


def line(plain: dict[str, Any]) -> Line:
    amiss = plain["lost"] + plain["duplicated"]
    flags = plain["skipped"], plain["forked"]
    return Line(plain["record"], plain["microbatches"], *flags, amiss, plain["grad_norm"], plain["digest"])


@dataclass(frozen=True)
class Look:
    """One daemon at a moment."""

    alive: bool
    state: str
    waiting_for: str
    version: int
    memory_mb: float
    cpu_s: float
    lines: dict[str, Line] = field(default_factory=dict)  # of its ledger, by record


class Victims:
    """The daemons of a swarm that is attacked."""

    def __init__(self, swarm: Swarm) -> None:
        self.swarm = swarm
        self.daemons: list[Daemon] = []
        self.addresses: list[str] = []

    async def start(self, stages: Sequence[int]) -> None:
        """Starts one daemon for each stage that is named, and waits until the first steps are done."""
        settings = write_settings(RUN, self.swarm.directory / "run.toml")
        self.daemons = await self.swarm.found(settings, stages)
        for daemon in self.daemons:
            await daemon.until(lambda status: status["version"] >= 3, END_SECONDS)
        self.addresses = [await daemon.address() for daemon in self.daemons]

    async def look(self) -> list[Look]:
        return list(await asyncio.gather(*(look_at(daemon) for daemon in self.daemons)))

    async def until(self, holds: Callable[[list[Look]], bool], seconds: float) -> bool:
        """Waits until something holds of the swarm; says whether it did in time."""
        deadline = time.monotonic() + seconds
        while not (held := holds(await self.look())) and time.monotonic() < deadline:
            await asyncio.sleep(POLL_SECONDS)
        return held


async def look_at(daemon: Daemon) -> Look:
    """A daemon as it is now; one that has ended, or says nothing, is shown so."""
    status: dict[str, Any] = {}
    with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
        async with asyncio.timeout(STATUS_S):
            status = await daemon.status()
    alive = daemon.process.returncode is None
    memory, cpu = 0.0, 0.0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(daemon.process.pid)
        with process.oneshot():
            memory, times = process.memory_info().rss / 1e6, process.cpu_times()
            cpu = times.user + times.system
    state = status.get("state", "deaf" if alive else "ended")
    lines = {it.record: it for it in map(line, _written(daemon))}
    return Look(alive, state, status.get("waiting_for", ""), status.get("version", 0), memory, cpu, lines)


def _written(daemon: Daemon) -> list[dict[str, Any]]:
    """The whole lines of a ledger: the last one may be half written. Lines that were voided are gone."""
    path = daemon.home / "ledger.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def honest_steps(before: Sequence[Look], after: Sequence[Look], forged: Container[str] = ()) -> int:
    """The steps that a swarm has done between two looks: whole ones, none that a stranger made. Those of the peer that
    has most count.
    """
    return max(len(_honest(_new(a, b), forged)) for a, b in zip(before, after, strict=True))


def _new(before: Look, after: Look) -> list[Line]:
    return [line for record, line in after.lines.items() if record not in before.lines]


def _honest(lines: Sequence[Line], forged: Container[str]) -> list[Line]:
    return [it for it in lines if it.record not in forged and not it.skipped and it.microbatches == WHOLE]


def harms(before: Sequence[Look], after: Sequence[Look], forged: Container[str] = ()) -> list[str]:
    """What was done to a swarm between two looks, besides that it became slower, each in a few words."""
    new = [line for a, b in zip(before, after, strict=True) for line in _new(a, b)]
    norms = [line.grad_norm for look in before for line in look.lines.values()]
    grown = max(b.memory_mb - a.memory_mb for a, b in zip(before, after, strict=True))
    counts = {
        "daemons ended": sum(not look.alive for look in after),
        "daemons deaf": sum(look.state == "deaf" for look in after),
        "daemons lost their state": sum(look.state in ("joining", "looking") for look in after),
        "daemons think that the run is over": sum(look.state == "finished" for look in after),
        "forged steps": len({line.record for line in new if line.record in forged}),
        "steps skipped": len({line.record for line in new if line.skipped and line.record not in forged}),
        "steps forked": len({line.record for line in new if line.forked and line.record not in forged}),
        "indices lost or doubled": max((line.amiss for line in new if line.record not in forged), default=0),
        "parameters zeroed": sum(line.digest == ZERO_DIGEST for line in new),
        "steps with an absurd gradient": sum(line.grad_norm > NORM_TIMES * max(norms, default=1.0) for line in new),
        "MB more memory": round(grown) if grown > GREW_MB else 0,
    }
    return [f"{count} {what}" for what, count in counts.items() if count]


@contextlib.asynccontextmanager
async def victims(stages: Sequence[int], without: str = "") -> AsyncIterator[Victims]:
    """A swarm with the defences named in `without` switched off."""
    async with swarm(weakened(without, "--quiet")) as it:
        made = Victims(it)
        await made.start(stages)
        yield made


def weakened(without: str = "", *options: str) -> tuple[str, ...]:
    """The program of a daemon that is attacked."""
    off = ("--without", without) if without else ()
    return ("tests.hostile.weak_daemon", "--slow", str(SLOW_S), *off, *options)
