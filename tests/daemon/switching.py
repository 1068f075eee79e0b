"""A switch between stages as a daemon makes it, in a process of its own, for its memory.

Prints JSON: bytes of a stage (parameters, moments and the sum), whether the old engine lived while the new one was
built, and the peak of resident memory over what it was before: with one stage, and after the switch to another.
"""

import asyncio
import dataclasses
import json
import resource
import sys
import types
import weakref
from typing import Any

import psutil

from swarmd.config import ModelConfig, NodeConfig, RunConfig
from swarmd.daemon.node import Node
from swarmd.daemon.waits import Waits
from swarmd.memory import share_arenas
from swarmd.stage.engine import StageEngine
from swarmd.stage.worker import Worker

SMALL = ModelConfig(vocabulary=256, hidden=64, ffn=64, heads=1, layers=3, stages=3, sequence_length=32)


def node_of(run: RunConfig) -> Any:
    """As much of a node as opens stages."""
    node: Any = types.SimpleNamespace(
        search=types.SimpleNamespace(run=run),
        config=NodeConfig(home="/", threads=1),
        waits=Waits(list),
        _worker=None,
        _remember=lambda _stage: None,
    )
    node._close_worker = types.MethodType(Node._close_worker, node)
    return node


def watched() -> tuple[list["weakref.ref[StageEngine]"], list[bool]]:
    """Every engine that a worker makes from now on, and whether one before it lived while it was made."""
    engines: list[weakref.ref[StageEngine]] = []
    beside: list[bool] = []
    make = Worker._make_engine

    def made(worker: Worker) -> StageEngine:
        beside.append(any(engine() is not None for engine in engines))
        engine = make(worker)
        engines.append(weakref.ref(engine))
        return engine

    setattr(Worker, "_make_engine", made)  # noqa: B010 - as benchmarks/paced.py
    return engines, beside


def peak() -> int:
    """Bytes, the highest so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


async def measure(width: int) -> dict[str, Any]:
    model = ModelConfig(vocabulary=256, hidden=width, ffn=2 * width, heads=8, layers=9, stages=3, sequence_length=32)
    run = RunConfig(name="switch", model=model, sequences_per_step=4, sequences_per_microbatch=2)
    _, beside = watched()
    share_arenas()
    node = node_of(run)
    small = await Worker.start(dataclasses.replace(run, model=SMALL), 1)
    await small.close()  # torch is loaded, and whatever a first stage needs
    before = psutil.Process().memory_info().rss
    await Node._open_stage(node, 1)
    one = peak() - before
    nbytes = 16 * node._worker.gradient_size
    await Node._open_stage(node, 2)
    return {"bytes": nbytes, "beside": beside[-1], "one": one, "both": peak() - before}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure(int(sys.argv[1])))))
