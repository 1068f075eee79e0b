"""Fuzzes one target, in a process of its own: `python -m tests.fuzz.drive TARGET [libFuzzer's options and folders]`.

Needs atheris (the extra `fuzz`). libFuzzer ends the process itself, with an exit code other than 0 after a finding.
"""

import gc
import logging
import random
import sys

import atheris
import psutil

from tests.fuzz.mutation import CASE_BYTES, mutated

WARM_EXECUTIONS = 5_000  # after these nothing may grow any more
GROWTH_BYTES = 100 << 20  # since then: the allocator's, and the fuzzer's own memory of its corpus
LOOK_EVERY = 5_000
INSTRUMENTED = 4.0  # so many times longer does it take what is watched


class Memory:
    """This process's memory, as cases are played."""

    def __init__(self) -> None:
        self._process, self._played, self._warm = psutil.Process(), 0, 0

    def look(self) -> None:
        """Counts a case. Raises MemoryError if this process has grown."""
        self._played += 1
        if self._played % LOOK_EVERY:
            return
        resident = self._process.memory_info().rss
        if self._played == WARM_EXECUTIONS:
            self._warm = resident
        if self._played % (10 * LOOK_EVERY) == 0:
            print(f"{self._played} cases: {resident >> 20} MiB, {self._warm >> 20} MiB when warm", flush=True)
        if resident > self._warm + GROWTH_BYTES:
            raise MemoryError(f"from {self._warm} to {resident} bytes in {self._played} cases")


def main() -> None:
    """Never returns."""
    logging.disable(logging.CRITICAL)
    with atheris.instrument_imports(include=["swarmd"], exclude=["swarmd.sim"]):
        from tests.fuzz.target import STALL_SECONDS, load, play

        target = load(sys.argv.pop(1))
    memory = Memory()
    gc.freeze()

    def one(data: bytes) -> None:
        play(target, data, INSTRUMENTED * STALL_SECONDS)
        memory.look()

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        return mutated(data, most, random.Random(seed), lambda it: atheris.Mutate(it, len(it) + 16))

    atheris.Setup([*sys.argv, f"-max_len={CASE_BYTES}"], one, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
