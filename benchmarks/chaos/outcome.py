"""The outcome on the daemons' disks: whether their ledgers agree and count everything once, and how far their
parameters are from those of one process over the same data.

Relies on ledgers and checkpoints only. A line counts if its record is in the chain of the newest one; lines of a
history that was given up do not.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swarmd.config import RunConfig

COUNTS = ("resent", "subtracted", "lost", "duplicated")
TOLERANCE = 1e-5  # promise 3, per tensor: norm of the difference over norm

Line = dict[str, Any]


@dataclass(frozen=True)
class Ledgers:
    """All ledgers together."""

    steps: int
    counts: dict[str, int]
    problems: list[str]  # broken promises, each a sentence
    forked: int  # steps of the history that went on without a majority


def read_lines(home: Path) -> Iterator[Line]:
    """A daemon's ledger. Lines that a kill tore are passed over."""
    for name in ("ledger.jsonl.1", "ledger.jsonl"):
        path = home / name
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
            try:
                yield json.loads(text)
            except ValueError:
                continue


def check_ledgers(homes: Sequence[Path], run: RunConfig, version: int) -> Ledgers:
    """Every step up to a version, every stage, every replica."""
    lines = [line for home in homes for line in read_lines(home) if line["step"] <= version]
    chain = _chain(lines, version)
    kept = [line for line in lines if chain.get(line["step"]) == line["record"]]
    problems = [] if len(chain) == version else [f"only {len(chain)} of {version} steps are in the newest chain"]
    first: dict[tuple[int, int], Line] = {}
    for line in kept:
        one = first.setdefault((line["step"], line["stage"]), line)
        where = f"step {line['step']}, stage {line['stage']}"
        problems += [
            f"{where}: two replicas differ in {key}" for key in ("grad_digest", "digest") if one[key] != line[key]
        ]
    problems += [
        f"step {step}: stage {stage} has no line"
        for step in range(1, version + 1)
        for stage in range(run.model.stages)
        if (step, stage) not in first
    ]
    problems += [
        f"step {step}, stage {stage}: {line['microbatches']} microbatches"
        for (step, stage), line in first.items()
        if line["microbatches"] != run.microbatches
    ]
    counts = Counter({name: sum(line[name] for line in first.values()) for name in COUNTS})
    forked = len({step for (step, _), line in first.items() if line["forked"]})
    return Ledgers(len(chain), dict(counts), problems, forked)


def _chain(lines: Sequence[Line], version: int) -> dict[int, str]:
    """Step -> record, from the record of the version that most ledgers have back to the first."""
    parents = {(line["step"], line["record"]): line["parent"] for line in lines}
    votes = Counter(line["record"] for line in lines if line["step"] == version)
    chain: dict[int, str] = {}
    record = votes.most_common(1)[0][0] if votes else ""
    for step in range(version, 0, -1):
        if (step, record) not in parents:
            break
        chain[step] = record
        record = parents[step, record]
    return chain


def distance(homes: Sequence[Path], run: RunConfig, version: int, cache: Path) -> dict[str, float]:
    """Per tensor: norm of the difference from one process' parameters, over the norm of these."""
    import dataclasses

    import torch

    from swarmd.sim.engines.training import plain_training
    from swarmd.stage.export import assemble
    from swarmd.text.data import load_data

    torch.set_num_threads(1)  # two that wait for each other are slower on a busy machine
    short = dataclasses.replace(run, steps=version)
    found, module = assemble([home / "checkpoints" for home in homes], run)
    assert found == version, f"the newest whole checkpoints are of version {found}, not {version}"
    data = load_data(run, cache_directory=cache)

    def tokens(_run: RunConfig, step: int, index: int) -> bytes:
        return bytes(asyncio.run(data.microbatch(step, index)))

    _, expected = plain_training(short, tokens)
    references = {name: value.detach() for name, value in expected.named().items()}
    return {
        name: float((value.detach() - references[name]).norm() / references[name].norm())
        for name, value in module.named().items()
    }
