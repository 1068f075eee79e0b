"""What the export and the import of a stage's state take beside the stage, in a process of its own.

Prints JSON, in bytes: the state, and by how much the peak of resident memory rose over what was resident before.
"""

import gc
import json
import sys
from pathlib import Path

import psutil

from swarmd.config import ModelConfig, RunConfig
from swarmd.stage.engine import StageEngine


def risen(before: int) -> int:
    """Bytes, since /proc/self/clear_refs began the peak anew."""
    words = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()
    return int(words[0]) * 1024 - before


def begin() -> int:
    """Bytes that are resident; the peak begins there."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return psutil.Process().memory_info().rss


def main(width: int) -> dict[str, int]:
    model = ModelConfig(vocabulary=256, hidden=width, ffn=2 * width, heads=8, layers=9, stages=3, sequence_length=32)
    run = RunConfig(name="state", model=model, sequences_per_step=4, sequences_per_microbatch=2)
    engine = StageEngine(run, 1)
    engine.import_state(engine.export_state())  # whatever a first one loads
    before = begin()
    state = engine.export_state()
    exported = risen(before)
    before = begin()
    engine.import_state(memoryview(state))
    return {"state": memoryview(state).nbytes, "export": exported, "import": risen(before)}


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]))))
