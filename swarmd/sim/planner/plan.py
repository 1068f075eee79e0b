"""The plan of a swarm that somebody thinks of renting: speed, time, bottleneck, traffic, memory, cost.

Says what the forecast (`forecast.py`) means for the whole run, and compares it with those of other wire formats and of
more peers. Assumptions are in docs/planning.md.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from swarmd.config import RunConfig
from swarmd.printable import counted
from swarmd.sim.planner import costs
from swarmd.sim.planner.forecast import Forecast, Question, forecast
from swarmd.sizes import block_parameters

GROWTH = (1, 2, 4)  # times as many peers
WIRES = ("fp16", "int8", "4-bit", "bottleneck-2", "maxout-2")
SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True)
class Variant:
    """The same with something changed."""

    what: str
    tokens_per_second: float
    bottleneck: str
    wire_bytes: int  # of an activation
    exists: bool


@dataclass(frozen=True)
class Plan:
    """The answer."""

    model: str
    peers: int
    stages: int
    parameters_applied: int
    rtt_s: float
    wire: str
    dtype: str
    outlook: Forecast
    run_seconds: float
    run_tokens: int
    price_per_hour: float | None
    run_price: float | None
    price_per_billion: float | None
    wires: tuple[Variant, ...]
    growth: tuple[Variant, ...]
    notes: tuple[str, ...]
    unpriced: tuple[str, ...] = ()  # devices without a price


def plan(question: Question, *, variants: bool = True, on_progress: Callable[[str], None] = lambda line: None) -> Plan:
    """Answers a question; `on_progress` gets a line for each part. Raises ConfigError where no placement works."""
    run = question.run
    on_progress(f"{counted(sum(group.count for group in question.groups), 'peer')} as asked")
    own = forecast(question)
    tokens = run.steps * run.microbatches * run.tokens_per_microbatch
    seconds = run.steps * own.step_s + _validation_seconds(run, own)
    hourly = [group.price * group.count for group in question.groups if group.price is not None]
    price = sum(hourly) if len(hourly) == len(question.groups) else None
    hours = seconds / SECONDS_PER_HOUR
    return Plan(
        model=run.name,
        peers=sum(group.count for group in question.groups),
        stages=run.model.stages,
        parameters_applied=_applied(run),
        rtt_s=question.rtt_s,
        wire=question.wire.name,
        dtype=_dtypes(question),
        outlook=own,
        run_seconds=seconds,
        run_tokens=tokens,
        price_per_hour=price,
        run_price=None if price is None else price * hours,
        price_per_billion=None if price is None else price * hours / tokens * 1e9,
        unpriced=tuple(dict.fromkeys(group.device.name for group in question.groups if group.price is None)),
        wires=tuple(_wires(question, own, on_progress)) if variants else (),
        growth=tuple(_growth(question, own, on_progress)) if variants else (),
        notes=tuple(_notes(question, own)),
    )


def _dtypes(question: Question) -> str:
    """The dtypes of products, with the devices where they differ."""
    devices = dict[str, list[str]]()
    for group in question.groups:
        names = devices.setdefault(question.dtype_on(group.device), [])
        names += [group.device.name] * (group.device.name not in names)
    if len(devices) == 1:
        return next(iter(devices))
    return ", ".join(f"{dtype} ({', '.join(names)})" for dtype, names in devices.items())


def _applied(run: RunConfig) -> int:
    model = run.model
    return model.layers * block_parameters(model) + (2 * model.vocabulary + 1) * model.hidden


def _validation_seconds(run: RunConfig, own: Forecast) -> float:
    """Forward only, now and then."""
    if not run.validate_every:
        return 0.0
    rate = own.tokens_per_second / run.tokens_per_microbatch
    times = run.steps // run.validate_every
    return times * run.validation_microbatches / rate / (1 + costs.BACKWARD_TIMES)


def _wires(question: Question, own: Forecast, on_progress: Callable[[str], None]) -> list[Variant]:
    found = []
    for name in dict.fromkeys((*WIRES, question.wire.name)):
        wire = costs.find_wire(name)
        on_progress(f"{name} on the wire")
        other = own if name == question.wire.name else forecast(replace(question, wire=wire))
        found.append(Variant(name, other.tokens_per_second, other.bottleneck, wire.nbytes(question.run), wire.exists))
    return found


def _growth(question: Question, own: Forecast, on_progress: Callable[[str], None]) -> list[Variant]:
    found = []
    for times in GROWTH:
        groups = tuple(replace(group, count=times * group.count) for group in question.groups)
        peers = sum(group.count for group in groups)
        on_progress(counted(peers, "peer"))
        other = own if times == 1 else forecast(replace(question, groups=groups))
        size = question.wire.nbytes(question.run)
        found.append(Variant(f"{peers}", other.tokens_per_second, other.bottleneck, size, exists=True))
    return found


def _notes(question: Question, own: Forecast) -> list[str]:
    notes = [own.rehearsed]
    for group in question.groups:
        device = group.device
        if question.dtype_on(device) == "bf16" and not device.has_bf16:
            notes.append(f"{device.name} has no units for bf16, and is counted at its fp32 rate: fp16 is faster there")
        if device.points and question.dtype_on(device) != device.measured:
            notes.append(f"{device.name} was measured in {device.measured} and is counted so")
        if device.points and not device.points[0].hidden <= question.run.model.hidden <= device.points[-1].hidden:
            notes.append(
                f"{device.name} was not measured at a width of {question.run.model.hidden}: the nearest counts"
            )
    tight = [row for row in own.rows if row.memory_share > 1]
    notes += [f"stage {row.stage} needs more memory than {row.device} has" for row in tight]
    return notes
