"""The report of the measurements: ratios to plain PyTorch within each round, their medians, and the table.

Pure: takes the results, gives text and plain data.
"""

import importlib.metadata
import os
import platform
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType

from benchmarks import forms
from swarmd.layout import Column


@dataclass(frozen=True)
class Measurement:
    """One run of one system. `result` is what it printed; None when it failed, and `failure` says why."""

    preset: str
    system: str
    round: int
    result: dict[str, Any] | None
    failure: str = ""

    @property
    def rate(self) -> float:
        """Tokens per second."""
        assert self.result is not None
        return float(self.result["tokens"] / self.result["seconds"])


def summarise(measurements: list[Measurement], preset: str, system: str, baseline: str) -> dict[str, Any]:
    """Median, least and greatest of a system's tokens per second and of its ratios to its round's baseline."""
    mine = [each for each in measurements if (each.preset, each.system) == (preset, system)]
    good = [each for each in mine if each.result is not None]
    failures = [each.failure for each in mine if each.result is None]
    base = {
        each.round: each.rate
        for each in measurements
        if (each.preset, each.system) == (preset, baseline) and each.result is not None
    }
    ratios = [each.rate / base[each.round] for each in good if each.round in base]
    extra = good[-1].result if good else None
    return {
        "preset": preset,
        "system": system,
        "rounds": len(good),
        "tokens_per_second": _spread([each.rate for each in good]),
        "ratio": _spread(ratios),
        "last": extra,
        "failures": failures,
    }


def disagreements(measurements: list[Measurement], baseline: str, allowed: Mapping[str, float]) -> list[str]:
    """A sentence for each loss that is further from the baseline's of its round than that share of it."""
    losses = {(it.preset, it.round, it.system): it.result["loss"] for it in measurements if it.result is not None}
    sentences = []
    for (preset, number, system), loss in losses.items():
        base = losses.get((preset, number, baseline))
        if base is not None and system in allowed and not abs(loss - base) <= allowed[system] * base:
            sentences.append(
                f"round {number + 1}, {preset}: the loss of {system} is {loss:.4f}, that of {baseline} {base:.4f}; on "
                f"the same microbatches they differ by at most {allowed[system]:.1%}"
            )
    return sentences


_COLUMNS = (
    Column("system", right=False),
    Column("tokens/s"),
    Column("ratio"),
    Column("least", 3),
    Column("greatest", 4),
    Column("rounds", 2),
    Column("loss", 1),
    Column("cores busy", 5),
)


def render(rows: list[dict[str, Any]], environment: dict[str, Any]) -> RenderableType:
    """The summaries as a table for each preset, and why a system gave none."""
    parts: list[RenderableType] = []
    for preset in dict.fromkeys(row["preset"] for row in rows):
        mine = [row for row in rows if row["preset"] == preset]
        parts.append(forms.table(_COLUMNS, [_cells(row) for row in mine if row["rounds"]], preset))
        failed = [(row["system"], failure) for row in mine for failure in dict.fromkeys(row["failures"])]
        parts += [forms.sentence(f"{system} failed: {failure}") for system, failure in failed]
    ratio = "ratio: tokens/s over plain PyTorch with 2 threads in the same round, median; pipelines have 2 x 1 thread"
    here = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in environment.items())
    return Group(*parts, forms.sentence(ratio), forms.sentence(here))


def _cells(row: dict[str, Any]) -> tuple[object, ...]:
    ratio, last = row["ratio"], row["last"]
    ratios = [f"{ratio[name]:.2f}" for name in ("median", "min", "max")] if ratio else ["-"] * 3
    busy = f"{last['busy_cores']:.2f}" if "busy_cores" in last else "-"
    rate = f"{row['tokens_per_second']['median']:,.0f}"
    return (row["system"], rate, *ratios, row["rounds"], f"{last['loss']:.4f}", busy)


def facts() -> dict[str, Any]:
    """The machine and the versions that the figures belong to."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
        "libp2p": importlib.metadata.version("libp2p"),
    }


def _spread(values: list[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
