"""Copies of other stages' checkpoints: who keeps which, by chance."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from swarmd.swarm.history.record import Record
from swarmd.swarm.state.copies import COPIES, Copies, plan_copies
from tests.swarm.cards import card
from tests.swarm.contexts import peer_context
from tests.swarm.records import RUN, record


@pytest.mark.parametrize("seed", range(200))
def test_copies_are_outside_and_as_many_as_can_be(seed: int) -> None:
    rng = random.Random(seed)
    stages = rng.randint(2, 6)
    replicas = [rng.randint(1, 4) for _ in range(stages)]
    places = {f"p{stage}{number}": stage for stage, count in enumerate(replicas) for number in range(count)}
    chosen = plan_copies(stages, places)
    assert set(chosen) == set(places), "everyone keeps one"
    assert all(places[peer] != stage for peer, stage in chosen.items())
    counts = Counter(chosen.values())
    if min(replicas) >= COPIES:
        assert min(counts[stage] for stage in range(stages)) >= COPIES
    assert min(counts[stage] for stage in range(stages)) >= 1, "a stage lives on when it loses all its replicas"


def test_a_single_stage_has_nowhere_to_be_copied() -> None:
    assert plan_copies(1, {"a": 0, "b": 0}) == {}


class Rig:
    """A peer of stage 0 that brings a copy of stage 1's version 2; `meanwhile` happens while that comes."""

    def __init__(self, meanwhile: Callable[["Rig"], Any]) -> None:
        self.meanwhile, self.written = meanwhile, list[tuple[int, int]]()
        cards = [card("a", stage=0), card("b", stage=1)]
        self.membership: Any = SimpleNamespace(own=cards[0], kin=lambda: cards, population=lambda: 2)
        self.history: Any = SimpleNamespace(finished=False, failure="", chain=SimpleNamespace(hash_at=lambda step: ""))
        disks: Any = SimpleNamespace(load=self._load, bring=self._bring)
        store: Any = SimpleNamespace(save_checkpoint=self._write)
        limits = SimpleNamespace(copies_bytes=1000)
        context = peer_context(run=RUN, limits=limits, membership=self.membership, history=self.history)
        self.copies = Copies(context, disks, store)

    async def _load(self, kept: Any) -> None:
        return None

    async def _bring(self, kept: Any, candidates: Any, members: Any) -> tuple[bytes, Record]:
        self.meanwhile(self)
        await asyncio.sleep(0)
        return b"state", record(step=kept.version)

    async def _write(self, version: int, stage: int, *_: Any, copy: bool) -> bool:
        assert copy
        self.written.append((version, stage))
        return True


@pytest.mark.parametrize(
    ("meanwhile", "written"),
    [
        (lambda it: None, True),
        (lambda it: setattr(it.history, "finished", True), False),
        (lambda it: it.history.__dict__.update(finished=True, failure="skipped too often"), True),
        (lambda it: setattr(it.membership, "own", card("a", stage=1)), False),
        (lambda it: setattr(it.history.chain, "hash_at", lambda step: "another"), False),
    ],
    ids=["nothing", "the run has ended", "the run has failed", "it has moved there", "another history"],
)
async def test_a_copy_that_comes_late_is_not_written_over_something_newer(meanwhile: Any, written: bool) -> None:
    """A checkpoint removes those of later versions: it takes them for a history that was given up."""
    it = Rig(meanwhile)
    await it.copies.keep(record(step=2))
    assert it.written == ([(2, 1)] if written else [])
