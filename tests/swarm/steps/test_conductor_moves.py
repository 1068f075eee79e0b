"""The conductor and moves: which wishes it keeps, and which moves the record grants."""

import asyncio
from typing import Any

import pytest

from swarmd.errors import Refused
from swarmd.swarm.history.record import Move
from swarmd.swarm.wire.messages.move import AskMove, MoveOutlook
from tests.swarm.cards import card
from tests.swarm.records import report
from tests.swarm.steps.conductor_rig import STEP, Rig, during


async def wish(it: Rig, peer: str = "p", *, source: int = 1, target: int = 0, **changes: Any) -> MoveOutlook:
    ask = AskMove(STEP, it.history.record_hash, source, target, **changes)
    return await it.conductor._answer_move(peer, ask)


async def granted(it: Rig) -> tuple[Move, ...]:
    await it.all_done()
    await asyncio.sleep(1)
    return it.ballots.proposed[0].moves


def test_a_wish_is_kept_for_the_record() -> None:
    async def events(it: Rig) -> None:
        it.add("r", 1)
        it.reports[1] = report(1, members=("p", "r"), holders=("p", "r"))
        await asyncio.sleep(0.1)
        assert await wish(it) == MoveOutlook(True, "")
        again = await wish(it, "r")
        assert (again.likely, again.why) == (False, "stage 1 would be left with 0 replicas, and it needs 1")
        assert await granted(it) == (Move("p", 1, 0),)

    during(events)


def test_what_was_wished_for_in_another_step_is_void() -> None:
    async def events(it: Rig) -> None:
        it.add("r", 1)
        it.reports[1] = report(1, members=("p", "r"), holders=("p", "r"))
        it.conductor._wishes.ask(Move("p", 1, 0), {0: ["me"], 1: ["p", "r"]})
        assert await granted(it) == ()

    during(events)


def test_a_wish_is_weighed_with_those_of_others_and_with_who_stays() -> None:
    async def events(it: Rig) -> None:
        it.add("r", 1)
        it.add("s", 1, state="draining")
        await asyncio.sleep(0.1)
        assert (await wish(it)).likely
        assert it.weighed == []
        await wish(it, "r", balance=True)
        assert it.weighed == [[Move("p", 1, 0)]]
        assert not (await wish(it, "r")).likely, "nobody would stay"

    during(events)


def test_only_who_leads_the_step_takes_wishes() -> None:
    async def events(it: Rig) -> None:
        await asyncio.sleep(0.1)
        with pytest.raises(Refused, match="another version"):
            await it.conductor._answer_move("p", AskMove(STEP, "theirs", 1, 0))

    during(events)


def test_what_would_make_the_swarm_slower_is_refused_if_it_is_for_balance() -> None:
    async def events(it: Rig) -> None:
        it.add("r", 1)
        it.imbalance = "another one moves there"
        await asyncio.sleep(0.1)
        assert await wish(it, balance=True) == MoveOutlook(False, "another one moves there")
        assert await wish(it) == MoveOutlook(True, "")

    during(events)


def test_with_the_last_step_nobody_moves() -> None:
    async def events(it: Rig) -> None:
        it.add("r", 1)
        await asyncio.sleep(0.1)
        assert await wish(it) == MoveOutlook(False, "the run ends with this step")
        it.conductor._wishes.ask(Move("p", 1, 0), {0: ["me"], 1: ["p", "r"]})
        it.reports[1] = report(1, members=("p", "r"), holders=("p", "r"))
        assert await granted(it) == ()

    during(events, steps=STEP)


@pytest.mark.parametrize(
    ("changes", "moves"),
    [
        ({"members": ("p", "r"), "holders": ("p", "r")}, 1),
        ({"members": ("p", "r"), "holders": ("p",)}, 0),
        ({"members": ("p", "r"), "holders": (), "finite": False}, 1),
        ({"members": ("p",), "holders": (), "finite": False}, 0),
    ],
    ids=["both have the gradient", "who would stay lacks it", "nobody needs it", "who would stay took no part"],
)
def test_a_stage_keeps_one_that_can_go_on_alone(changes: dict[str, Any], moves: int) -> None:
    async def events(it: Rig) -> None:
        it.add("r", 1)
        it.reports[1] = report(1, **changes)
        await asyncio.sleep(0.1)
        assert (await wish(it)).likely
        assert len(await granted(it)) == moves

    during(events)


def test_a_stage_keeps_one_that_stays() -> None:
    async def events(it: Rig) -> None:
        it.add("r", 1)
        it.reports[1] = report(1, members=("p", "r"), holders=("p", "r"))
        await asyncio.sleep(0.1)
        assert (await wish(it)).likely
        it.membership.hear(card("r", stage=1, version=STEP - 1, sequence=2, state="draining"), 0.0)
        assert await granted(it) == ()

    during(events)
