"""Every checker is silent on a healthy world and fires on one that was tampered with."""

import asyncio
import dataclasses
import gc
from collections.abc import Awaitable, Callable

import pytest

from swarmd.config import LimitsConfig
from swarmd.sim.campaign.bounds import BOUNDS, Bound, check_bounds
from swarmd.sim.campaign.checks import (
    ON_ITS_WAY_SECONDS,
    UNNOTICED_SECONDS,
    Violation,
    Visit,
    check_chain,
    check_moves,
)
from swarmd.sim.campaign.play import Play, play
from swarmd.sim.engines.reference import share
from swarmd.sim.engines.symbolic import SymbolicEngine
from swarmd.sim.faults.commands import Join
from swarmd.sim.faults.machines import Crash, StageLoss
from swarmd.sim.faults.scenario import Scenario
from swarmd.sim.world.clock import run_virtual
from swarmd.sim.world.world import SimPeer
from swarmd.swarm.history.chain import RECORDS_KEPT
from swarmd.swarm.history.votes import OwnVotes
from swarmd.values import HopId

CALM = Scenario(replicas=(2, 1), microbatches=4, steps=4)

Change = Callable[[Play], Awaitable[None]]


def tampered(change: Change, *, at: int = 2, conclude: bool = False) -> list[Violation]:
    """Lets a healthy swarm come to a version, changes something behind its back, and looks."""

    async def main() -> list[Violation]:
        it = Play(CALM, trace=False)
        it.watch.listen()
        for peer, stage in CALM.peers.items():
            await it.start(peer, stage)
        await it.world.until(lambda: it.version() >= at, 600)
        await change(it)
        if conclude:
            it.watch.conclude()
        else:
            it.watch.look()
        await it.stop()
        return it.watch.found

    return run_virtual(main())


def promises(violations: list[Violation]) -> set[int]:
    return {violation.promise for violation in violations}


def engine_of(it: SimPeer) -> SymbolicEngine:
    assert it.compute is not None
    engine = it.compute.engine
    assert isinstance(engine, SymbolicEngine)
    return engine


async def nothing(it: Play) -> None:
    """No change at all."""


def test_a_healthy_world_gives_no_cause() -> None:
    assert tampered(nothing) == []
    outcome = play(CALM)
    assert outcome.violations == ()
    assert outcome.version == CALM.steps


@pytest.mark.parametrize("times", [-1, 1], ids=["lost", "double"])
def test_a_share_too_many_or_too_few_is_seen(times: int) -> None:
    """Promise 1: whatever the ledger says."""

    async def change(it: Play) -> None:
        engine = engine_of(it.world.peers["tail1"])
        await it.world.until(lambda: bool(engine.counted), 60)
        hop = min(engine.counted)
        for place, value in enumerate(share(CALM.seed, hop, 1, engine.gradient_size)):
            engine.sum[place] += times * value
        await it.world.until(lambda: it.version() >= hop.step, 60)

    found = tampered(change)
    assert {1, 3} <= promises(found)
    assert any("applied another gradient" in violation.text for violation in found)


def test_steps_that_are_skipped_without_cause_are_seen() -> None:
    async def change(it: Play) -> None:
        engine = engine_of(it.world.peers["tail1"])
        engine.applied[0] = dataclasses.replace(engine.applied[0], grad_digest="", averaged=())

    assert 1 in promises(tampered(change))


@pytest.mark.parametrize("name", ["lost", "duplicated", "microbatches"])
def test_counts_of_the_ledger_are_seen(name: str) -> None:
    async def change(it: Play) -> None:
        it.world.peers["head1"].store.ledger[0][name] += 1

    found = tampered(change)
    assert promises(found) == {1}
    assert name in found[0].text


def test_a_hop_of_another_kind_is_a_bug_of_ours() -> None:
    async def change(it: Play) -> None:
        engine = engine_of(it.world.peers["tail1"])
        with pytest.raises(AssertionError):
            engine._expect("activation", (1,), (2,))

    assert promises(tampered(change)) == {1}


@pytest.mark.parametrize("name", ["grad_digest", "digest"])
def test_replicas_that_differ_are_seen(name: str) -> None:
    async def change(it: Play) -> None:
        it.world.peers["head2"].store.ledger[1][name] = "other"

    found = tampered(change)
    assert promises(found) == {2}
    assert ("gradient" if name == "grad_digest" else "parameters") in found[0].text


def test_other_parameters_and_losses_than_the_reference_are_seen() -> None:
    async def change(it: Play) -> None:
        engine = engine_of(it.world.peers["tail1"])
        engine.applied[1] = dataclasses.replace(engine.applied[1], digest="other")
        it.world.peers["head1"].store.ledger[1]["loss"] += 1e-9

    found = tampered(change)
    assert promises(found) == {3}
    assert len(found) == 2


def test_a_record_that_was_not_decided_is_seen() -> None:
    async def change(it: Play) -> None:
        for peer in it.world.peers.values():
            peer.peer.history.votes = OwnVotes()
        it.watch._decided.clear()

    found = tampered(change)
    assert promises(found) == {8}
    assert "of step 2 that 0 of 3 accepted" in found[0].text


def test_a_last_replica_that_goes_by_its_own_choice_is_seen() -> None:
    async def change(it: Play) -> None:
        it.watch.look()
        it.world.peers["tail1"].peer.own.become("left")

    assert 4 in promises(tampered(change))

    async def allowed(it: Play) -> None:
        it.watch.look()
        it.world.peers["head1"].peer.own.become("left")

    assert 4 not in promises(tampered(allowed))

    async def killed(it: Play) -> None:
        it.watch.look()
        it.world.crash("tail1")

    assert 4 not in promises(tampered(killed))


@pytest.mark.parametrize(
    ("power", "heir", "seconds", "seen"),
    [
        (True, "", UNNOTICED_SECONDS - 1, False),
        (True, "", UNNOTICED_SECONDS + 1, True),
        (True, "head1", UNNOTICED_SECONDS - 1, True),
        (True, "head1", ON_ITS_WAY_SECONDS / 2, False),
        (False, "", ON_ITS_WAY_SECONDS / 2, False),
        (False, "", ON_ITS_WAY_SECONDS + 1, True),
    ],
    ids=["not missed yet", "silent for long", "it had to be asked", "gone after its word", "being reset", "reset"],
)
def test_a_peer_that_moves_must_know_of_the_others_death(power: bool, heir: str, seconds: float, seen: bool) -> None:
    async def change(it: Play) -> None:
        it.world.crash("head1", power=power)
        it.watch.look()
        await asyncio.sleep(seconds)
        it.world.peers["head2"].peer.switch.leave_for(1, heir)

    assert (4 in promises(tampered(change))) is seen


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda bound: bound.name)
def test_every_bound_can_be_exceeded(bound: Bound) -> None:
    async def change(it: Play) -> None:
        tight = dataclasses.replace(bound, limit=lambda peer, run: -1)
        found = list(check_bounds(it.world, [tight]))
        assert {violation.peer for violation in found} == set(CALM.peers)
        assert bound.name in found[0].text
        assert not list(check_bounds(it.world, [bound]))

    assert tampered(change) == []


def test_what_grows_is_seen() -> None:
    async def change(it: Play) -> None:
        history = it.world.peers["head1"].peer.history
        assert history.record is not None
        history.chain._records.update(dict.fromkeys(range(100, 101 + RECORDS_KEPT), history.record))
        it.world.peers["tail1"].peer.journeys.custodian.retention.nbytes = 1 << 40  # type: ignore[union-attr]

    found = tampered(change)
    assert promises(found) == {5}
    assert {violation.peer for violation in found} == {"head1", "tail1"}


def test_tasks_without_end_are_seen() -> None:
    async def change(it: Play) -> None:
        async def idle() -> None:
            await asyncio.sleep(1000)

        machine = next(iter(it.world.peers.values())).machine
        tasks = [machine.spawn(idle()) for _ in range(1000)]
        it.watch.look()
        for task in tasks:
            task.cancel()

    assert promises(tampered(change)) == {5}


def test_who_has_not_come_to_the_end_is_seen() -> None:
    found = tampered(nothing, conclude=True)
    assert {6, 8} == promises(found)
    assert any("stands at version" in violation.text for violation in found)


def test_a_peer_that_failed_is_seen() -> None:
    async def change(it: Play) -> None:
        async def fail() -> None:
            raise ZeroDivisionError("on purpose")

        it.world.peers["head2"].peer.tasks.start(fail())
        for _ in range(20):
            await asyncio.sleep(0.01)

    found = tampered(change)
    assert 7 in promises(found)
    assert any("ZeroDivisionError" in violation.text for violation in found)


def test_what_failed_unheard_is_seen() -> None:
    async def change(it: Play) -> None:
        async def fail() -> None:
            raise ZeroDivisionError("on purpose")

        task = asyncio.create_task(fail())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        del task
        gc.collect()

    found = tampered(change)
    assert promises(found) == {7}


def line(step: int, record: str, parent: str) -> dict[str, object]:
    return {"step": step, "record": record, "parent": parent}


CHAIN = [line(1, "a", ""), line(2, "b", "a"), line(3, "c", "b")]


@pytest.mark.parametrize(
    ("ledgers", "words"),
    [
        ([CHAIN, [*CHAIN[:2], line(3, "d", "b")]], "another record"),
        ([[*CHAIN, CHAIN[2]]], "twice"),
        ([[CHAIN[1], CHAIN[0], CHAIN[2]]], "out of order"),
        ([CHAIN[:2]], "nobody has a record"),
        ([CHAIN[1:]], "nobody has a record"),
        ([[CHAIN[0], line(2, "b", "x"), CHAIN[2]]], "doesn't follow"),
    ],
)
def test_a_broken_chain_is_seen(ledgers: list[list[dict[str, object]]], words: str) -> None:
    """Promise 8."""
    found = list(check_chain(3, {f"peer{number}": ledger for number, ledger in enumerate(ledgers)}))
    assert any(violation.promise == 8 and words in violation.text for violation in found)
    assert not list(check_chain(3, {"one": CHAIN, "late": CHAIN[1:], "away": [CHAIN[0], CHAIN[2]]}))
    assert not list(check_chain(3, {"late": CHAIN[1:]}, [[line(1, "x", "")], CHAIN[:1]]))


@pytest.mark.parametrize(
    ("stands", "passes"), [({(3, "c")}, True), (set(), False), ({(3, "d")}, False), ({(3, "c"), (3, "d")}, False)]
)
def test_the_last_step_may_be_in_the_ledgers_of_the_dead_alone(stands: set[tuple[int, str]], passes: bool) -> None:
    """The living came by others' state to the one record at which they stand. Promise 8."""
    assert (not list(check_chain(3, {"newcomer": []}, [CHAIN], stands))) is passes


def test_a_newcomer_that_is_left_alone_needs_no_ledger_of_what_was_before() -> None:
    """All who took the step that it was given the state of are gone, and a stage with them."""
    left = Scenario(
        replicas=(1, 1),
        microbatches=20,
        speeds=(0.05,),
        limits=LimitsConfig(copies_bytes=0),
        faults=(Join(4.5, "newcomer", stage=0), Crash(6.0, "head1"), StageLoss(6.5, 1)),
    )
    outcome = play(left)
    assert (outcome.violations, outcome.version) == ((), 1)
    assert outcome.struck == {"crash": 1, "join": 1, "stage loss": 1}


def test_moving_back_and_forth_is_seen() -> None:
    way = [Visit(0, 0.0, 5.0), Visit(1, 6.0, 9.0), Visit(0, 10.0, 11.0)]
    assert [it.promise for it in check_moves({"a": way, "b": way[:2]}, 5.1)] == [9]
    assert not list(check_moves({"a": way}, 5.0)), "it has rested"

    async def change(it: Play) -> None:
        for stage in (0, 1, 0):
            own = it.world.peers["head2"].peer.own
            own.card = dataclasses.replace(own.card, stage=stage)
            it.watch.look()

    assert 9 in promises(tampered(change))

    async def restarted(it: Play) -> None:
        own = it.world.peers["head2"].peer.own
        own.card = dataclasses.replace(own.card, stage=1)
        it.watch.look()
        await it.restart("head2", disk=True)
        it.watch.look()

    assert 9 not in promises(tampered(restarted)), "another life begins where it is needed"


def test_what_is_left_after_the_end_is_seen() -> None:
    left: list[asyncio.Task[None]] = []

    async def change(it: Play) -> None:
        left.append(asyncio.create_task(asyncio.sleep(1000), name="left behind"))

    found = tampered(change)
    assert promises(found) == {10}
    assert "left behind" in found[0].text


def test_violations_say_where_to_look() -> None:
    violation = Violation(1, "an index is missing", HopId(3, 7).step, 7)
    assert str(violation) == "promise 1: an index is missing"
    assert (violation.step, violation.index) == (3, 7)
