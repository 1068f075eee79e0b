"""A peer's figures: what is counted over steps and stages, and what is taken back."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.hops.step_sum import StepSums
from swarmd.swarm.peer.figures import Figures
from swarmd.swarm.wire.own_card import OwnCard
from tests.swarm.cards import card
from tests.swarm.contexts import peer_context


def figures(history: Any, switch: Any) -> Figures:
    links: Any = SimpleNamespace(own=OwnCard(card("me")), transport=SimpleNamespace(addresses=tuple))
    run: Any = SimpleNamespace(rebalance_seconds=0.0)
    context = peer_context(run=run, links=links, history=history, own=links.own)
    return Figures(context, switch, cast("Any", SimpleNamespace(has_data=False)))


def test_microbatches_of_committed_steps_count_on_at_another_stage() -> None:
    history, switch = SimpleNamespace(version=0, record=None), SimpleNamespace(served=None)
    it = figures(history, switch)
    assert it.microbatches_done() == 0
    sums = StepSums()
    switch.served = SimpleNamespace(sums=sums)
    for index in range(3):
        sums.of(1).add(index, 1.0, "")
    assert it.microbatches_done() == 3, "of the present step"
    it.on_record(SimpleNamespace(step=1, validation_loss=None))  # type: ignore[arg-type]
    history.version = 1
    assert it.microbatches_done() == 3
    switch.served = None
    assert it.microbatches_done() == 3, "between two stages"


def test_the_rate_counts_from_when_the_peer_began_to_serve() -> None:
    async def main() -> None:
        history, switch = SimpleNamespace(version=0, record=None), SimpleNamespace(served=None)
        it, sums = figures(history, switch), StepSums()
        switch.served = SimpleNamespace(sums=sums)
        sums.of(1).add(0, 1.0, "")
        await asyncio.sleep(100)
        assert it.microbatches_per_second() == 0.0
        it.begin()
        await asyncio.sleep(2)
        assert it.microbatches_per_second() == pytest.approx(0.5)

    run_virtual(main())


@pytest.mark.parametrize(("record", "left"), [(None, None), (SimpleNamespace(validation_loss=3.0), 3.0)])
def test_a_validation_loss_ends_with_its_version(record: Any, left: float | None) -> None:
    history = SimpleNamespace(version=0, record=None)
    it = figures(history, SimpleNamespace(served=SimpleNamespace(sums=StepSums())))
    it.on_replaced()
    assert it.validation_loss is None
    it.on_record(SimpleNamespace(step=1, validation_loss=2.0))  # type: ignore[arg-type]
    it.on_record(SimpleNamespace(step=2, validation_loss=None))  # type: ignore[arg-type]
    assert it.validation_loss == 2.0, "the newest"
    history.record = record
    it.on_replaced()
    assert it.validation_loss == left
