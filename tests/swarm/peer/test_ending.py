"""A peer's part in a run's end: which stages it sees to, and when it may leave."""

import asyncio
import dataclasses
from types import SimpleNamespace
from typing import Any, cast

import pytest

from swarmd.config import LimitsConfig
from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.history.record import Record
from swarmd.swarm.membership.table import Membership
from swarmd.swarm.peer.ending import LINGER_SECONDS, WORD_SECONDS, Ending
from swarmd.swarm.signals import Signal
from swarmd.swarm.state.download import OutOfDonors
from swarmd.swarm.tasks import alongside
from swarmd.swarm.wire.messages.disks import CheckpointName
from swarmd.swarm.wire.messages.presence import Card
from swarmd.swarm.wire.own_card import OwnCard
from tests.swarm.cards import card
from tests.swarm.contexts import peer_context
from tests.swarm.records import skipped


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


@pytest.mark.parametrize("told", [True, False])
def test_no_warning_is_given_of_what_is_about_to_be_known(told: bool) -> None:
    """The only replica of stage 0 leaves as soon as a copy is elsewhere; its goodbye comes before the word of that."""

    def finished(peer: str, stage: int, **changes: Any) -> Card:
        return card(peer, stage=stage, state="finished", version=3, machine=peer, spare=True, **changes)

    async def main() -> tuple[Ending, float]:
        own, loop = OwnCard(card("me", stage=1, machine="me", version=3)), asyncio.get_running_loop()
        members = Membership(own)
        run: Any = SimpleNamespace(steps=3, model=SimpleNamespace(stages=2))
        history: Any = SimpleNamespace(version=3, finished=True, failure="", chain=SimpleNamespace(members=tuple))
        limits = LimitsConfig(copies_bytes=0)
        context = peer_context(run=run, limits=limits, membership=members, history=history, own=own)
        nothing: Any = None
        ending = Ending(context, nothing, nothing, lambda since: ())

        def hear(it: Card) -> None:
            members.hear(it, loop.time())
            ending.hear(it)
            members.sweep(loop.time())
            members.changed.notify()

        hear(finished("a", 0, final=(0,)))
        hear(finished("b", 1, final=(1,)))
        running, began = asyncio.create_task(ending.run(saved=True)), loop.time()
        await asyncio.sleep(1.0)
        hear(card("a", stage=0, state="left", version=3, machine="a", sequence=2, final=(0,)))
        await asyncio.sleep(0.045)
        if told:
            hear(finished("b", 1, sequence=2, final=(0, 1)))
        await running
        return ending, loop.time() - began

    ending, took = run_virtual(main())
    assert ending.is_at_risk() != told
    assert ("Stage 0 on one machine only" in ending.sentence()) != told
    assert took == pytest.approx(1.045 if told else 1.0 + WORD_SECONDS)


def test_a_stage_that_can_not_be_had_holds_up_no_other() -> None:
    """Stage 0 is on one disk that doesn't give it; stage 1 is on one that does."""

    async def main() -> tuple[int, ...]:
        own, loop = OwnCard(card("me", stage=2, machine="me", version=3)), asyncio.get_running_loop()
        members = Membership(own)
        run: Any = SimpleNamespace(steps=3, model=SimpleNamespace(stages=3))
        decided = skipped()
        history: Any = SimpleNamespace(record=decided, version=3, chain=SimpleNamespace(members=tuple))
        limits = LimitsConfig(final_copies_timeout_s=30.0)

        async def bring(name: CheckpointName, *_: Any, **__: Any) -> tuple[bytes, Record]:
            if name.stage == 0:
                raise OutOfDonors("it is gone")
            return b"", decided

        async def save_checkpoint(*_: Any, **__: Any) -> bool:
            return True

        disks: Any = SimpleNamespace(bring=bring)
        store: Any = SimpleNamespace(save_checkpoint=save_checkpoint)
        context = peer_context(run=run, limits=limits, membership=members, history=history, own=own)
        ending = Ending(context, disks, store, lambda since: ())
        for peer, stage in (("a", 0), ("b", 1), ("c", 2)):
            it = card(peer, stage=stage, state="finished", version=3, machine=peer, final=(stage,), spare=False)
            members.hear(it, loop.time())
        await ending.run(saved=True)
        return own.card.final

    assert run_virtual(main()) == (1, 2)


def alone(steps: int) -> tuple[Membership, Ending]:
    """A peer at the end of a run, which knows nobody."""
    own = OwnCard(card("me", stage=0, machine="me", version=steps))
    members, nothing = Membership(own), None
    run: Any = SimpleNamespace(steps=steps, model=SimpleNamespace(stages=1))
    history: Any = SimpleNamespace(version=steps, finished=True, failure="", chain=SimpleNamespace(members=tuple))
    limits = LimitsConfig(copies_bytes=0)
    context = peer_context(run=run, limits=limits, membership=members, history=history, own=own)
    return members, Ending(context, cast("Any", nothing), cast("Any", nothing), lambda since: ())


@pytest.mark.parametrize("there", [True, False])
def test_one_of_whom_others_say_that_it_is_late_is_waited_for_until_it_is_met_or_is_not_there(there: bool) -> None:
    async def main() -> tuple[str, float]:
        loop = asyncio.get_running_loop()
        members, ending = alone(3)
        late = card("late", stage=0, state="joining", version=1)
        members.rumours.hear(late, 0.0)
        running, began = asyncio.create_task(ending.run(saved=True)), loop.time()
        await asyncio.sleep(1.0)
        said = ending.wait()
        members.rumours.drop("late")
        if there:
            members.hear(late, loop.time())
        members.changed.notify()
        await asyncio.sleep(1.0)
        assert running.done() != there
        if there:
            members.hear(dataclasses.replace(late, sequence=9, state="finished", version=3), loop.time())
            members.changed.notify()
        await running
        return said.sentence() if said else "", loop.time() - began

    said, took = run_virtual(main())
    assert said == "the others to have the run's last version (1 behind, waited for 20 s at most)"
    assert took == pytest.approx(2.0)


def test_peers_that_are_invented_again_and_again_hold_up_an_end_for_no_longer_than_one_that_is_there() -> None:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        members, ending = alone(3)

        async def invent() -> None:
            number = 0
            while True:
                members.rumours.hear(card(f"x{number}", stage=0, state="serving", version=1), loop.time())
                await asyncio.sleep(0.5)
                members.rumours.drop(f"x{number - 1}")
                members.changed.notify()
                number += 1

        async with alongside(invent()):
            await asyncio.sleep(0)
            await ending.run(saved=True)
        return loop.time()

    assert run_virtual(main()) == pytest.approx(LINGER_SECONDS)
