"""A peer from its place to its goodbye: what it decides itself, which is little."""

import asyncio
import dataclasses
from types import SimpleNamespace
from typing import Any, cast

import pytest

from swarmd.errors import ConfigError
from swarmd.swarm.balance.places import Entrance
from swarmd.swarm.history.chain import RECORDS_KEPT
from swarmd.swarm.history.judge import RecordJudge
from swarmd.swarm.peer import peer as module
from tests.swarm.cards import card
from tests.swarm.peer.parts import AsyncPart, Part
from tests.swarm.peer.peer_rig import (
    JOINS,
    Rig,
    calls,
    try_it,
)
from tests.swarm.records import RUN, record

# ------------------------------------------------------------------------------------------------- what it shows


def test_who_knows_no_other_founds_the_run() -> None:
    async def events(it: Rig) -> None:
        assert (it.history.origin.founder, it.history.origin.founded, it.history.origin.resumes) == ("p", True, True)

    try_it(events, Entrance(resume=True))

    async def joins(it: Rig) -> None:
        assert it.history.origin.founder == ""

    try_it(joins)


def test_one_that_said_goodbye_at_the_end_has_finished() -> None:
    async def events(it: Rig) -> None:
        assert (it.peer.state, it.peer.stage) == ("serving", 1)
        it.own.become("left")
        states = [it.peer.state]
        cast("Any", it.peer.ending).over = True
        states.append(it.peer.state)
        it.own.become("serving")
        assert [*states, it.peer.state] == ["left", "finished", "serving"]

    try_it(events)


def test_between_two_stages_it_has_no_parts_of_one() -> None:
    async def events(it: Rig) -> None:
        def parts() -> list[Any]:
            return [it.peer.sums, it.peer.journeys, it.peer.compute]

        assert parts() == ["sums", it.served.journeys, it.served.compute]
        it.peer.switch.served = None
        assert parts() == [None, None, None]
        assert await it.peer._validate(3) is None

    try_it(events)


def test_without_the_text_it_is_no_head_on_any_disk() -> None:
    async def events(it: Rig) -> None:
        it.peer.lacks_data()
        assert (it.peer.places.has_data, it.peer.disks.has_data) == (False, False)

    try_it(events)


@pytest.mark.parametrize(("data", "loss"), [("data", 1.5), (None, None)])
def test_only_who_has_the_text_validates(data: str | None, loss: float | None) -> None:
    async def events(it: Rig) -> None:
        cast("Any", it.served).data = data
        assert await it.peer._validate(3) == loss

    try_it(events)


# ------------------------------------------------------------------------------------------------- coming


class Coming:
    """Replaces what a peer does to come in."""

    def __init__(self, it: Rig, places: list[int], cannot: tuple[int, ...] = ()) -> None:
        self.log = it.log

        async def find() -> int:
            return places.pop(0)

        async def opens(stage: int, *, pull: bool) -> Any:
            self.log.append(("opens", stage, pull))
            if stage in cannot:
                raise ConfigError(f"no {stage}")
            return it.served

        it.peer.places = cast("Any", SimpleNamespace(find=find))
        it.peer.switch = cast("Any", SimpleNamespace(open=opens, served=it.served))
        it.peer.arriving = cast("Any", AsyncPart("arriving", it.log))
        found = AsyncPart("returns", it.log, found=record(step=4), tell=None)
        it.peer.returns = cast("Any", found)
        it.history.adopt = AsyncPart("history", it.log).adopt  # type: ignore[method-assign]


def test_what_its_ledger_lacks_of_a_past_life_is_mended_once_it_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    async def events(it: Rig) -> None:
        async def mend(context: Any, store: Any, tail: Any) -> None:
            it.log.append(("mends", store, tail))

        monkeypatch.setattr(module, "mend_ledger", mend)
        it.peer._store.ledger_tail = lambda count: {count: "hash"}  # type: ignore[method-assign]
        Coming(it, [1])
        await it.peer._join()
        assert calls(it)[-2:] == [("arriving.reach", it.served), ("mends", it.peer._store, {RECORDS_KEPT: "hash"})]

    try_it(events)


def test_a_newcomer_opens_its_stage_and_reaches_the_swarms_version() -> None:
    async def events(it: Rig) -> None:
        Coming(it, [1])
        await it.peer._join()
        assert calls(it) == [("opens", 1, False), ("arriving.reach", it.served)], "it serves at once, and says so then"
        it.hear("q", version=7)
        Coming(it, [1])
        await it.peer._join()
        assert calls(it) == [("opens", 1, True), "serving", ("arriving.reach", it.served)], "the state comes meanwhile"

    try_it(events)


@pytest.mark.parametrize(
    ("entrance", "alone", "place", "stages", "raises"),
    [
        (JOINS, False, 0, 2, False),
        (JOINS, True, 0, 2, True),
        (JOINS, False, 1, 2, True),
        (JOINS, False, 0, 1, True),
        (Entrance(stage=0, entries=("q",)), False, 0, 2, True),
    ],
    ids=[
        "it may serve another",
        "nobody else would be the head",
        "not a matter of text",
        "there is no other stage",
        "it was told to",
    ],
)
def test_who_cannot_be_a_head_looks_for_another_place(
    entrance: Entrance, alone: bool, place: int, stages: int, raises: bool
) -> None:
    async def events(it: Rig) -> None:
        if not alone:
            it.hear("q", version=0)
        Coming(it, [place, (place + 1) % stages], cannot=(place,))
        if raises:
            with pytest.raises(ConfigError, match=f"no {place}"):
                await it.peer._join()
            assert calls(it) == [("opens", place, False)], "it looks for no other"
        else:
            await it.peer._join()
            assert calls(it) == [("opens", 0, False), ("opens", 1, False), ("arriving.reach", it.served)]

    model = dataclasses.replace(RUN.model, stages=stages)
    try_it(events, entrance, dataclasses.replace(RUN, model=model))


@pytest.mark.parametrize("version", [0, 7], ids=["all others resume, too", "others are at work"])
@pytest.mark.parametrize(
    ("entrance", "founder", "founds"),
    [
        (Entrance(resume=True), "p", True),
        (Entrance(resume=True, entries=("q",)), "gone", True),
        (Entrance(resume=True, entries=("q",)), "q", False),
        (Entrance(entries=("q",)), "gone", False),
    ],
)
def test_one_peer_decides_from_where_a_run_is_resumed(
    entrance: Entrance, founder: str, founds: bool, version: int
) -> None:
    async def events(it: Rig) -> None:
        it.hear("q", version=version)
        it.history.origin.founder, it.history.origin.resumes = founder, True
        Coming(it, [1])
        await it.peer._join()
        await asyncio.sleep(0)
        log = calls(it)
        assert log[0] == ("opens", 1, False), "no state comes before it is decided which one"
        names = [call if isinstance(call, str) else call[0] for call in log]
        decides = ["returns.found", "history.adopt"]
        assert [name for name in names if name != "returns.tell"] == [
            "opens",
            "serving",
            *(decides if founds else []),
            "arriving.reach",
        ]
        assert ("returns.tell" in names) == founds

    try_it(events, entrance)


def test_who_is_told_to_resume_a_run_that_is_under_way_joins_it() -> None:
    async def events(it: Rig) -> None:
        it.hear("q", version=7)
        Coming(it, [1])
        await it.peer._join()
        assert calls(it) == [("opens", 1, True), "serving", ("arriving.reach", it.served)]

    try_it(events, Entrance(resume=True, entries=("q",)))


def test_it_comes_serves_and_closes_everything_in_the_end() -> None:
    async def events(it: Rig) -> None:
        it.peer.tasks = it.peer._context.tasks
        for name in ("gossip", "liveness"):
            setattr(it.peer, name, AsyncPart(name, it.log))
        it.peer.switch = cast("Any", Part("switch", it.log))
        it.history.close = Part("history", it.log).close  # type: ignore[method-assign]

        async def join() -> None:
            await asyncio.sleep(0.1)
            it.log.append("joined")

        it.peer._join = join  # type: ignore[method-assign]
        it.peer._serve = AsyncPart("peer", it.log).serve  # type: ignore[method-assign]
        await it.peer.run()
        assert calls(it) == [
            ("gossip.run",),
            ("liveness.run", it.peer._sweep),
            "joined",
            ("peer.serve",),
            ("mover.close",),
            ("switch.close",),
            ("history.close",),
        ]

    try_it(events)


def test_it_hears_of_commits_and_judges_others_by_them() -> None:
    async def events(it: Rig) -> None:
        assert it.peer in it.history._listeners
        assert isinstance(it.links._judge, RecordJudge)

    try_it(events)


# ------------------------------------------------------------------------------------------------- others


@pytest.mark.parametrize("served", [True, False])
def test_what_is_heard_of_others_is_told_to_whom_it_concerns(served: bool) -> None:
    async def events(it: Rig) -> None:
        if not served:
            it.peer.switch.served = None
        it.peer._heard(card("q"))
        assert calls(it) == ["ending.hear", *([("served.on_card", card("q"))] if served else [])]
        it.peer._suspected("q")
        assert calls(it) == [("places.lost", "q"), *([("served.suspect", "q")] if served else [])]

    try_it(events)


@pytest.mark.parametrize("served", [True, False])
def test_those_who_take_its_final_state_are_known_while_it_has_a_stage(served: bool) -> None:
    async def events(it: Rig) -> None:
        cast("Any", it.served).donor = SimpleNamespace(pullers=lambda since: {f"since {since}"})
        if not served:
            it.peer.switch.served = None
        assert it.peer._pullers(3.0) == ({"since 3.0"} if served else set())

    try_it(events)


@pytest.mark.parametrize(
    ("changes", "heir"),
    [
        ({"state": "left", "heir": "h"}, "h"),
        ({"state": "joining", "heir": "h"}, "h"),
        ({"state": "serving", "heir": "h"}, ""),
        ({"state": "left", "heir": "q"}, ""),
        ({"state": "left", "heir": "gone"}, ""),
        ({"state": "left"}, ""),
        (None, ""),
    ],
    ids=["it left", "it moves", "it fell silent", "itself", "its heir is gone, too", "no heir", "unknown"],
)
def test_what_a_peer_did_is_with_its_heir_if_it_has_one(changes: dict[str, Any] | None, heir: str) -> None:
    async def events(it: Rig) -> None:
        it.hear("h")
        if changes is not None:
            it.hear("q", **changes)
        it.peer.conductor = cast("Any", SimpleNamespace(desk=Part("desk", it.log)))
        changed = asyncio.ensure_future(it.membership.changed.wait())
        await asyncio.sleep(0)
        it.peer._gone("q")
        assert calls(it) == [("served.peer_lost", "q", heir), ("desk.peer_lost", "q", heir)]
        await asyncio.sleep(0)
        assert changed.done()
        it.peer.switch.served = None
        it.peer._gone("q")
        assert calls(it) == [("desk.peer_lost", "q", heir)]

    try_it(events)


@pytest.mark.parametrize(("served", "conducts", "due"), [(True, 9.0, 5.0), (True, 3.0, 3.0), (False, 9.0, 9.0)])
def test_a_sweep_looks_at_everything_and_says_when_to_look_again(served: bool, conducts: float, due: float) -> None:
    async def events(it: Rig) -> None:
        if not served:
            it.peer.switch.served = None
        it.peer.conductor = cast("Any", Part("conductor", it.log, sweep=conducts))
        it.peer.forks = cast("Any", Part("forks", it.log))
        assert it.peer._sweep(1.0) == due
        told = [("conductor.sweep", 1.0), ("forks.sweep", 1.0), ("returns.sweep",), ("figures.sweep", 1.0)]
        assert calls(it) == [*([("served.sweep", 1.0)] if served else []), *told]
        assert not it.peer._device_lost.done()

    try_it(events)


# ------------------------------------------------------------------------------------------------- commits


@pytest.mark.parametrize("served", [True, False])
def test_another_state_voids_what_was_under_way(served: bool) -> None:
    async def events(it: Rig) -> None:
        if not served:
            it.peer.switch.served = None
        changed = asyncio.ensure_future(it.membership.changed.wait())
        await asyncio.sleep(0)
        it.peer.on_replaced()
        assert it.refreshed == 1
        assert calls(it) == [*([("served.abandon",), ("ballots.forget",)] if served else []), ("figures.on_replaced",)]
        await asyncio.sleep(0)
        assert changed.done()

    try_it(events)


@pytest.mark.parametrize(
    ("forked", "broken", "state", "said"),
    [
        (False, False, "serving", []),
        (True, False, "serving", ["serving"]),
        (False, True, "serving", ["joining"]),
        (False, True, "draining", ["draining"]),
    ],
)
def test_a_record_ends_its_step_and_what_the_others_must_know_is_said(
    forked: bool, broken: bool, state: Any, said: list[str]
) -> None:
    async def events(it: Rig) -> None:
        it.own.become(state)
        it.history.broken = 3 if broken else 0
        of = dataclasses.replace(record(step=3), forked=forked)
        changed = asyncio.ensure_future(it.membership.changed.wait())
        await asyncio.sleep(0)
        it.peer.on_record(of)
        assert it.refreshed == 1
        assert [call[:2] for call in calls(it)] == [
            ("figures.on_record", of),
            ("served.end_step", 3),
            ("mover.on_record", of),
            ("saving.on_record", of),
        ]
        await asyncio.sleep(0)
        assert changed.done()
        await asyncio.sleep(0.1)
        assert calls(it) == said

    try_it(events)


@pytest.mark.parametrize(("conductor", "told"), [("c", ["c"]), ("p", []), ("", [])])
def test_who_has_no_state_any_more_says_so_to_the_next_conductor(conductor: str, told: list[str]) -> None:
    async def events(it: Rig) -> None:
        heard: list[str] = []

        async def tell_all(peers: list[str], word: Any, *, deadline_s: float) -> None:
            assert word.card.state == "joining"
            heard.extend(peers)

        it.peer.links = cast("Any", SimpleNamespace(tell_all=tell_all))
        it.peer.conductor = cast(
            "Any", SimpleNamespace(conductor_of=lambda step: conductor if step == 4 else "another")
        )
        await it.peer._say_broken(record(step=3))
        assert heard == told

    try_it(events)
