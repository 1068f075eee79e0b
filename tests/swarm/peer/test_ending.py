"""A peer's part in a run's end: which stages it sees to, and when it may leave."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from swarmd.swarm.peer.ending import Ending
from swarmd.swarm.signals import Signal
from tests.swarm.cards import card
from tests.swarm.contexts import peer_context


@pytest.mark.parametrize(("peers", "stages"), [(48, [0, 1, 2, 3, 4, 5, 6, 7]), (49, [2, 3, 4])])
def test_in_a_large_swarm_everyone_sees_to_what_is_near(peers: int, stages: list[int]) -> None:
    membership: Any = SimpleNamespace(own=card("p", stage=3))
    chain: Any = SimpleNamespace(members=lambda: tuple(f"p{number}" for number in range(peers)))
    history: Any = SimpleNamespace(chain=chain)
    run: Any = SimpleNamespace(model=SimpleNamespace(stages=8))
    nothing: Any = None
    context = peer_context(run=run, membership=membership, history=history)
    assert Ending(context, nothing, nothing, nothing).stages() == stages


@pytest.mark.parametrize(("failure", "left"), [("", False), ("its parameters are not finite", True)])
async def test_who_is_told_to_leave_a_run_that_has_failed_waits_for_nothing(failure: str, left: bool) -> None:
    history: Any = SimpleNamespace(failure=failure)
    membership: Any = SimpleNamespace(changed=Signal())
    nothing: Any = None
    ending = Ending(peer_context(membership=membership, history=history), nothing, nothing, nothing)
    waiting = asyncio.create_task(ending.released(60.0))
    await asyncio.sleep(0)
    assert waiting.done() == left
    waiting.cancel()
