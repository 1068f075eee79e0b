"""The corpus of the fuzzer, played again: nothing that it found comes back, and it stays small."""

import random
from collections.abc import Iterator
from typing import Any

import pytest

from swarmd.swarm.wire.messages.round import AskHoldings, Holdings
from tests.fuzz.mutation import CASE_BYTES, mutated, read_case, write_case
from tests.fuzz.target import CORPUS, Finding, Target, load, names, play
from tests.fuzz.targets.handlers import Handlers

CORPUS_BYTES = 500_000


@pytest.mark.timeout(300)  # real connections, one after the other
@pytest.mark.parametrize("name", names())
def test_no_case_of_the_corpus_breaks_anything(name: str) -> None:
    cases = sorted((CORPUS / name).iterdir())
    assert cases, f"python -m tests.fuzz --keep {name}"
    target = load(name)
    try:
        for path in cases:
            target.play(read_case(path.read_bytes()))  # not timed: the machine may be busy
    finally:
        target.close()


def test_the_corpus_is_small_and_of_targets_that_are_there() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(names())
    assert sum(path.stat().st_size for path in CORPUS.glob("*/*")) <= CORPUS_BYTES


class Idle(Target):
    """A target that takes as long as it is told."""

    def seeds(self) -> Iterator[Any]:
        yield 0.0

    def play(self, case: Any) -> None:
        if case == "fail":
            raise KeyError(case)
        sum(range(int(case)))


def test_what_fails_or_takes_long_is_found() -> None:
    play(Idle(), write_case(1))
    play(Idle(), b"\xc1")  # no case
    with pytest.raises(KeyError):
        play(Idle(), write_case("fail"))
    with pytest.raises(Finding, match="took"):
        play(Idle(), write_case(100_000), stall_s=1e-6)


def test_a_handler_that_fails_is_found() -> None:
    target = Handlers()
    peer = target._swarm.world.peers["head1"].peer

    async def fail(asker: str, message: AskHoldings) -> Holdings:
        raise KeyError(asker)

    try:
        [case] = [case for case in target.seeds() if case[2][0][0] == "AskHoldings"][:1]
        target.play([0, *case[1:]])
        peer.links.handle(AskHoldings, fail)
        with pytest.raises(KeyError):
            target.play([0, *case[1:]])
    finally:
        target.close()


def test_changed_cases_are_cases_and_the_same_on_every_day() -> None:
    data = write_case([1, "two", {"three": [4.0, b"five", None, True]}])
    changed = {mutated(data, CASE_BYTES, random.Random(seed), lambda it: it + b"!") for seed in range(300)}
    assert len(changed) > 100
    for each in changed:
        read_case(each)
    first, second = (mutated(data, CASE_BYTES, random.Random(7), bytes) for _ in range(2))
    assert first == second
    assert mutated(b"\xc1", CASE_BYTES, random.Random(7), bytes) == b"\xc1", "no case"
    assert len(mutated(data, len(data), random.Random(3), bytes)) <= len(data)
