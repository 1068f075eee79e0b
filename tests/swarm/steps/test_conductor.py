"""The conductor of steps: when it leads, and what it proposes."""

import asyncio
import dataclasses
import itertools

import pytest

from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.steps.conductor import LOOK_SECONDS, PATIENCE_CEILING_SECONDS, RETRY_SECONDS, VALIDATION_SECONDS
from swarmd.swarm.wire.messages.commit import AskRecord
from swarmd.swarm.wire.messages.step import TookOver
from tests.swarm.records import RUN, record, report
from tests.swarm.steps.conductor_rig import BEFORE, LAST, RETURN, STEP, Rig, during

# ------------------------------------------------------------------------------------------------- a step


def test_it_leads_a_step_to_its_record_and_tells_everyone() -> None:
    async def events(it: Rig) -> None:
        await asyncio.sleep(0.5)
        assert it.conductor.desk.completed == 0
        assert not (await it.all_done()).again
        await asyncio.sleep(1)
        (made,) = it.ballots.proposed
        assert (made.step, made.parent, made.conductor) == (STEP, LAST.hash, "me")
        assert made.seconds == pytest.approx(2.0), "since its first lease"
        assert made.total_tokens == 1000 + it.reports[1].tokens
        assert made.validation_loss is None
        assert it.adopted == [(made, "me")]
        assert it.commits == ["p"]
        assert (it.ballots.sought, it.told_returns, it.ended_rounds) == ([STEP], [], [])
        assert it.conductor.desk.completed is None, "no more leases of it"
        assert [ask for _, ask in it.links.asked if isinstance(ask, AskRecord | TookOver)] == []

    during(events)


def test_it_waits_while_another_is_first() -> None:
    async def main() -> None:
        it = Rig()
        it.add(BEFORE, 0)
        assert (it.conductor.conductor_of(STEP), it.conductor.is_first(STEP)) == (BEFORE, False)
        running = asyncio.ensure_future(it.conductor.run())
        await asyncio.sleep(1)
        it.membership.suspect(BEFORE)
        await asyncio.sleep(LOOK_SECONDS - 2)
        assert it.ballots.sought == []
        await asyncio.sleep(2)
        assert it.conductor.is_first(STEP)
        assert it.ballots.sought == [STEP]
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    run_virtual(main())


@pytest.mark.parametrize("replaced", [False, True], ids=["committed", "another state"])
def test_what_another_leads_may_come_while_it_waits(replaced: bool) -> None:
    async def main() -> None:
        it = Rig()
        it.add(BEFORE, 0)
        running = asyncio.ensure_future(it.conductor.run())
        await asyncio.sleep(1)
        it.history.finished = True
        it.history.version += not replaced
        it.history.replacements += replaced
        it.membership.changed.notify()
        await asyncio.sleep(0.1)
        assert running.done()
        assert it.ballots.sought == []

    run_virtual(main())


@pytest.mark.parametrize("change", ["another first", "committed", "replaced"])
def test_it_leads_no_longer_once_another_is_first_or_the_step_is_over(change: str) -> None:
    async def events(it: Rig) -> None:
        await asyncio.sleep(1)
        assert it.conductor.desk.completed == 0
        it.history.finished = True
        if change == "another first":
            it.add(BEFORE, 0)
        else:
            it.history.version += change == "committed"
            it.history.replacements += change == "replaced"
        it.membership.changed.notify()
        await asyncio.sleep(0.1)
        assert it.conductor.desk.completed is None
        assert it.ballots.proposed == []

    during(events)


@pytest.mark.parametrize("kinds", [("decided",), ("bound",), ("decided", "bound")])
def test_what_is_decided_or_may_be_is_not_trained_again(kinds: tuple[str, ...]) -> None:
    async def main() -> None:
        it = Rig()
        it.stop_with(STEP)
        old = record(step=STEP, conductor=BEFORE)
        for kind in kinds:
            setattr(it.ballots, kind, old)
        await asyncio.wait_for(it.conductor.run(), 1)
        assert it.adopted == [(old, "me")]
        assert it.ballots.proposed == ([] if "decided" in kinds else [old])
        await asyncio.gather(*it.background)
        assert it.commits == ["p"]

    run_virtual(main())


def test_who_is_outranked_waits_longer_each_time() -> None:
    async def events(it: Rig) -> None:
        it.ballots.outranked = 9
        times: list[float] = []
        for _ in range(10):
            before = len(it.ballots.sought)
            while len(it.ballots.sought) == before:
                await asyncio.sleep(0.01)
            times.append(asyncio.get_running_loop().time())
        waits = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert waits == pytest.approx([1, 2, 4, 8, 16, 32, 64, 120, PATIENCE_CEILING_SECONDS], abs=0.05)
        await asyncio.sleep(0.1)
        it.history.finished, it.applies = False, True
        await it.all_done()
        await asyncio.sleep(1)
        assert it.conductor._outranked == 0

    during(events)


def test_who_is_outranked_gives_no_leases_meanwhile() -> None:
    async def events(it: Rig) -> None:
        await asyncio.sleep(0.1)
        it.ballots.outranked = 1
        await it.all_done()
        await asyncio.sleep(0.1)
        assert (len(it.ballots.proposed), it.conductor.desk.completed) == (1, None)
        await asyncio.sleep(1)
        assert (len(it.ballots.sought), it.conductor.desk.completed) == (2, 0)

    during(events)


def test_the_commit_ends_the_patience_of_who_was_outranked() -> None:
    async def main() -> None:
        it = Rig()
        it.ballots.outranked = 99
        running = asyncio.ensure_future(it.conductor.run())
        await asyncio.sleep(20)
        sought = len(it.ballots.sought)
        it.history.finished = True
        it.commit(record(step=STEP))
        await asyncio.sleep(0.1)
        assert running.done()
        assert len(it.ballots.sought) == sought

    run_virtual(main())


def test_a_record_that_it_cannot_apply_is_not_learnt_again_at_once() -> None:
    async def events(it: Rig) -> None:
        await asyncio.sleep(0.1)
        it.applies, it.ballots.decided = False, record(step=STEP)
        await it.all_done()
        await asyncio.sleep(10 * RETRY_SECONDS)
        assert 9 <= len(it.adopted) <= 12

    during(events)


def test_the_record_counts_on_from_the_one_before() -> None:
    async def events(it: Rig) -> None:
        it.history.record = dataclasses.replace(LAST, skips=2)
        it.reports[1] = report(1, members=("p",), finite=False)
        await it.all_done()
        await asyncio.sleep(1)
        assert it.ballots.proposed[0].skips == 3

    during(events)


# ------------------------------------------------------------------------------------------------- a stage is lost


def test_a_return_is_proposed_instead_of_the_step() -> None:
    async def events(it: Rig) -> None:
        await asyncio.sleep(5)
        it.lost.set_result(RETURN)
        await asyncio.sleep(5)
        assert it.ballots.proposed == [RETURN]
        assert (it.adopted, it.told_returns, it.commits) == ([(RETURN, "me")], [RETURN], [])
        assert it.ballots.sought == [STEP], "the step is not over before it has returned"
        it.stop_with(RETURN.step)
        it.commit(RETURN)
        await asyncio.sleep(0.1)
        assert it.ballots.sought == [STEP]

    during(events)


def test_without_a_stage_only_a_way_back_is_worth_going_on_without_the_others() -> None:
    async def events(it: Rig) -> None:
        await asyncio.sleep(1)
        assert it.ballots.complete()
        it.membership.suspect("p")
        assert not it.ballots.complete()
        it.lost.set_result(RETURN)
        await asyncio.sleep(0.1)
        assert it.ballots.complete()

    during(events)


# ------------------------------------------------------------------------------------------------- validation


@pytest.mark.parametrize(("every", "loss"), [(2, 1.5), (1, 1.5), (3, None), (0, None)])
def test_every_so_many_versions_the_record_has_a_validation_loss(every: int, loss: float | None) -> None:
    async def events(it: Rig) -> None:
        await it.all_done()
        await asyncio.sleep(1)
        assert [made.validation_loss for made in it.ballots.proposed] == [loss]
        assert it.validated == ([STEP - 1] if loss else [])

    during(events, validate_every=every)


def test_the_untrained_version_is_not_validated() -> None:
    async def main() -> None:
        it = Rig(dataclasses.replace(RUN, validate_every=1))
        assert await it.conductor._validation(0) is None
        assert it.validated == []

    run_virtual(main())


@pytest.mark.parametrize("in_time", [True, False])
def test_the_step_waits_for_its_validation_but_not_for_ever(in_time: bool) -> None:
    async def events(it: Rig) -> None:
        it.validation_s = 3.0 + VALIDATION_SECONDS + (-1.0 if in_time else 1.0)
        await it.all_done()
        await asyncio.sleep(VALIDATION_SECONDS - 2)
        assert it.ballots.proposed == []
        await asyncio.sleep(3)
        assert [made.validation_loss for made in it.ballots.proposed] == [1.5 if in_time else None]

    during(events, validate_every=1)
