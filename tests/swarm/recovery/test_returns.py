"""Returns to a version on disks: who is told of one, whom it concerns, and how a peer comes by its state."""

import asyncio
import dataclasses
from typing import Any, cast

import pytest

from swarmd.swarm.recovery.returns import FETCH_SECONDS, FETCHES, TELL_SECONDS
from tests.swarm.recovery.returns_rig import CHAIN, VERSION, Rig, back_to, try_it


def test_it_begins_with_nothing_under_way_and_hears_of_what_is_decided() -> None:
    async def events(it: Rig) -> None:
        assert (it.returns.due, it.returns.waiting, it.returns.under_way) == (None, "", False)
        assert it.listeners == [it.returns]

    try_it(events)


# ------------------------------------------------------------------------------------------------- telling


@pytest.mark.parametrize(
    ("changes", "late"),
    [
        ({}, True),
        ({"version": VERSION + 1}, False),
        ({"state": "left"}, False),
        ({"version": 4, "record_hash": "back"}, False),
        ({"version": 5, "record_hash": "further"}, False),
        ({"version": 3, "record_hash": "before"}, True),
    ],
    ids=["it is where it was", "it is ahead", "it left", "it has returned", "it goes on from there", "it is behind"],
)
def test_those_are_told_who_may_not_have_heard(changes: dict[str, Any], late: bool) -> None:
    async def events(it: Rig) -> None:
        back = back_to(4)
        it.records.clear()
        it.records.update({3: CHAIN[3], 4: back, 5: CHAIN[5]})
        names = {"back": back.hash, "further": CHAIN[5].hash, "before": CHAIN[3].hash}
        it.hear("p", **{name: names[value] if name == "record_hash" else value for name, value in changes.items()})
        assert it.returns._is_late(it.membership.members()["p"].card, back) == late
        assert not it.returns._is_late(it.membership.own, back)

    try_it(events)


def test_while_it_has_yet_to_return_itself_it_tells_everyone() -> None:
    async def events(it: Rig) -> None:
        it.returns.due = back_to(4)
        it.hear("p", version=4, record_hash=CHAIN[4].hash)
        assert it.returns._is_late(it.membership.members()["p"].card, it.returns.due)
        assert not it.returns._is_late(it.membership.members()["p"].card, back_to(4, why="another"))

    try_it(events)


@pytest.mark.parametrize(("state", "late"), [("serving", True), ("finished", False), ("left", False)])
def test_the_end_is_told_to_those_who_have_not_ended(state: str, late: bool) -> None:
    async def events(it: Rig) -> None:
        end = dataclasses.replace(back_to(6), ends=True)
        it.hear("p", state=state)
        assert it.returns._is_late(it.membership.members()["p"].card, end) == late

    try_it(events)


def test_it_tells_them_again_until_another_return_is_made() -> None:
    async def events(it: Rig) -> None:
        back = back_to(4)
        it.returns.due = it.history.returned = back
        telling = asyncio.create_task(it.returns.tell(back))
        await asyncio.sleep(2.5 * TELL_SECONDS)
        assert it.commits == ["p"] * 3
        it.history.returned = back_to(4, after="another")
        await asyncio.sleep(TELL_SECONDS)
        assert (len(it.commits), telling.done()) == (4, False), "it is due"
        it.returns.due = None
        await asyncio.sleep(TELL_SECONDS)
        assert telling.done()
        telling = asyncio.create_task(it.returns.tell(back))
        await asyncio.sleep(0)
        assert telling.done()
        for made in (None, back_to(4, after="")):
            it.history.returned = made
            telling = asyncio.create_task(it.returns.tell(back))
            await asyncio.sleep(0)
            assert not telling.done()
            telling.cancel()

    try_it(events)


# ------------------------------------------------------------------------------------------------- returning


@pytest.mark.parametrize(
    ("changes", "rig", "concerned"),
    [
        ({}, {}, True),
        ({"after": "theirs"}, {}, False),
        ({"after": "theirs"}, {"ready": False}, True),
        ({"after": "theirs"}, {"behind": True}, True),
        ({"after": "theirs", "after_version": VERSION - 1}, {"behind": True}, False),
        ({"after": "theirs", "after_version": VERSION + 1}, {}, False),
        ({"after": "theirs", "after_version": VERSION + 1}, {"torn": True}, True),
        ({"after": "theirs"}, {"torn": True}, False),
    ],
)
def test_a_return_is_for_those_whose_version_it_follows_or_who_would_have_come_to_it(
    changes: dict[str, Any], rig: dict[str, bool], concerned: bool
) -> None:
    async def events(it: Rig) -> None:
        torn = rig.pop("torn", False)
        if torn:
            it.membership.suspect("p")
        for name, value in rig.items():
            setattr(it.history, name, value)
        back = back_to(4, **changes)
        woken = [asyncio.create_task(it.membership.changed.wait()), asyncio.create_task(it.history.changed.wait())]
        await asyncio.sleep(0)
        it.returns.on_return(back)
        await asyncio.sleep(0.1)
        assert it.returns.due is (back if concerned else None)
        assert [task.done() for task in woken] == [concerned] * 2
        assert it.ended == []

    try_it(events)


def test_a_return_may_follow_the_one_that_is_due() -> None:
    async def events(it: Rig) -> None:
        first = it.returns.due = back_to(4)
        it.returns.on_return(second := back_to(2, after=first.hash, after_version=4))
        assert it.returns.due is second

    try_it(events)


@pytest.mark.parametrize("place", ["the record", "what is due", "made before"])
def test_a_return_that_is_known_is_no_news(place: str) -> None:
    async def events(it: Rig) -> None:
        back = back_to(4)
        if place == "the record":
            it.history.record = back
        elif place == "made before":
            it.history.returned = back
        else:
            it.returns.due = back
        assert not it.returns._concerns(dataclasses.replace(back, conductor="another"))

    try_it(events)


def test_a_return_may_be_the_end() -> None:
    async def events(it: Rig) -> None:
        end = dataclasses.replace(back_to(6), ends=True, why="no way back")
        it.returns.on_return(end)
        assert (it.ended, it.returns.due) == ([end], None)

    try_it(events)


def test_the_state_comes_from_its_own_disk_or_from_anyones() -> None:
    async def events(it: Rig) -> None:
        it.returns.due = back_to(4)
        it.hear("gone", state="left")
        it.hear("q", stage=0, state="joining")
        it.loaded = b"own"
        assert await it.returns.state(it.returns.due, 0) == b"own"
        assert it.tries == 0
        it.loaded, it.brought = None, [b"theirs"]
        assert await it.returns.state(it.returns.due, 0) == b"theirs"
        assert it.holders == ["p", "q"]

    try_it(events)


def test_it_tries_again_for_the_state_and_says_what_it_waits_for() -> None:
    async def events(it: Rig) -> None:
        it.returns.due = back_to(4)
        having = asyncio.create_task(it.returns.state(it.returns.due, 1))
        await asyncio.sleep(2.5 * FETCH_SECONDS)
        assert it.tries == 3
        assert it.returns.waiting == "version 4 of stage 1, on a disk of anyone who is there"
        it.brought = [b"theirs"]
        assert await having == b"theirs"

    try_it(events)


@pytest.mark.parametrize(
    ("version", "state", "passes"),
    [(5, "serving", True), (5, "finished", True), (4, "serving", False), (5, "joining", False)],
)
def test_once_others_are_ahead_it_tries_only_so_often(version: int, state: str, passes: bool) -> None:
    async def events(it: Rig) -> None:
        own = it.membership._own_card
        own.card = dataclasses.replace(own.card, version=0, state="joining")
        it.hear("p", version=version, state=state)
        it.returns.due = back_to(4)
        having = asyncio.create_task(it.returns.state(it.returns.due, 1))
        await asyncio.sleep(FETCHES * FETCH_SECONDS + 1)
        assert having.done() == passes
        assert not passes or (having.result(), it.tries) == (None, FETCHES)
        having.cancel()

    try_it(events)


def test_it_tries_no_longer_once_another_return_is_decided() -> None:
    async def events(it: Rig) -> None:
        it.returns.due = first = back_to(4)
        having = asyncio.create_task(it.returns.state(first, 1))
        await asyncio.sleep(1)
        it.returns.due = back_to(2)
        assert await having is None
        assert it.tries == 1

    try_it(events)


def test_a_return_that_is_made_is_due_no_more() -> None:
    async def events(it: Rig) -> None:
        it.returns.due = back = back_to(4)
        it.returns.waiting = "something"
        it.membership.suspect("p")
        it.returns.sweep()
        with it.returns.making():
            assert it.returns.under_way
            changed = asyncio.create_task(it.membership.changed.wait())
            await asyncio.sleep(0)
            it.returns.done(back_to(2))
            assert it.returns.due is back, "another one was decided meanwhile"
            it.returns.done(back)
        assert cast("object", it.returns.due) is None
        assert (it.returns.under_way, it.returns.waiting, it.returns._lost_since) == (False, "", None)
        await asyncio.sleep(0)
        assert changed.done()

    try_it(events)
