"""The belief about who is alive: whose work is lost, who is called again, and who is judged only later."""

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any, cast

import pytest

from swarmd.errors import PeerUnreachable
from swarmd.sim.world.clock import run_virtual
from swarmd.sim.world.machine import Machine
from swarmd.swarm.membership import liveness as module
from swarmd.swarm.membership.liveness import (
    CALM_SWEEP_SECONDS,
    LOOK_AGAIN_SECONDS,
    SEEK_SECONDS,
    SOUGHT_AT_ONCE,
    STALL_SECONDS,
    SWEEP_SECONDS,
    Liveness,
)
from swarmd.swarm.membership.standing import NEW_AT_ONCE, NEW_SECONDS
from swarmd.swarm.membership.table import FEW, SILENCE_FLOOR_SECONDS, SMALL_SWARM, Membership
from swarmd.swarm.tasks import Tasks, alongside
from swarmd.swarm.wire.incarnation import Incarnation
from swarmd.swarm.wire.links import Links
from swarmd.swarm.wire.messages.common import INCARNATION_STEP
from swarmd.swarm.wire.messages.presence import Card
from swarmd.swarm.wire.own_card import OwnCard
from tests.swarm.cards import card

FAR = 9  # a stage


class Rig:
    """Peer `me` of stage 0. Whom it calls answers with the card in `answers`, or not at all."""

    def __init__(self, *others: Card) -> None:
        self.own = OwnCard(card("me", stage=0, incarnation=5, sequence=5))
        self.members, self.told = Membership(self.own), list[Card]()
        self.log = list[tuple[str, str]]()
        self.answers, self.calls, self.deaf = dict[str, Card](), list[tuple[float, str]](), set[str]()
        self.networks, self.greeted = dict[str, str](), list[Card]()
        self.changes = 0
        self.met: Callable[[Card], None] = lambda it: None
        self.lost: Callable[[str], None] = lambda it: None
        links = SimpleNamespace(
            own=self.own,
            incarnation=Incarnation(self.own),
            transport=SimpleNamespace(
                learn=lambda peer, *_: self._note("learnt", peer),
                drop=self._drop,
                network_of=lambda peer: self.networks.get(peer, peer),
            ),
            greeted=lambda: tuple(self.greeted),
            on_card=lambda it: setattr(self, "met", it),
            on_lost=lambda it: setattr(self, "lost", it),
            greet=self._greet,
        )
        self.own.on_announce(self._tell)
        self.liveness = Liveness(
            cast("Links", links),
            self.members,
            cast("Tasks", SimpleNamespace(start=asyncio.ensure_future)),
            suspected=lambda peer: self._note("suspected", peer),
            gone=lambda peer: self._note("gone", peer),
            heard=lambda it: self._note("heard", it.peer),
        )
        for it in others:
            self.members.hear(it, now())
        self.members.changed.notify = self._changed  # type: ignore[method-assign]

    def _changed(self) -> None:
        self.changes += 1

    def _note(self, what: str, peer: str) -> None:
        self.log.append((what, peer))

    async def _tell(self, it: Card) -> None:
        self.told.append(it)

    async def _drop(self, peer: str) -> None:
        self._note("dropped", peer)

    async def _greet(self, peer: str) -> None:
        self.calls.append((now(), peer))
        if peer in self.deaf:
            await asyncio.sleep(1000)
        if peer not in self.answers:
            raise PeerUnreachable(peer)
        self.met(self.answers[peer])

    def called(self) -> list[str]:
        return [peer for _, peer in self.calls]

    def gone(self) -> list[str]:
        return [peer for what, peer in self.log if what == "gone"]


def now() -> float:
    return asyncio.get_running_loop().time()


def play(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    run_virtual(test())


def never(_: float) -> float:
    return 1e9


# ------------------------------------------------------------------------------------------------- hearing


def test_a_card_is_taken_in_once_and_its_addresses_with_it() -> None:
    async def test() -> None:
        rig = Rig()
        rig.met(card("a"))
        rig.liveness.hear(card("a"))
        assert rig.log == [("learnt", "a"), ("heard", "a")]
        assert rig.members.get("a") == card("a")

    play(test)


def test_a_peer_that_nobody_has_met_counts_nowhere_until_it_greets() -> None:
    async def test() -> None:
        rig = Rig()
        rig.liveness.hear(card("a", stage=1))
        rig.liveness.hear_of(card("b", stage=1))
        assert [it.peer for it in rig.members.rumours.cards()] == ["a", "b"]
        assert (rig.members.stage(1), rig.members.population(), rig.members.missing_stages(2)) == ([], 1, [1])
        rig.met(card("a", stage=1))
        assert (rig.members.stage(1), rig.members.population()) == ([card("a", stage=1)], 2)
        rig.liveness.hear(card("a", stage=1, sequence=2))
        assert rig.members.get("a") == card("a", stage=1, sequence=2), "then its gossip counts"
        assert [it.peer for it in rig.members.rumours.cards()] == ["b"]

    play(test)


def test_who_greeted_before_anyone_listened_is_met() -> None:
    async def test() -> None:
        rig = Rig()
        rig.greeted.append(card("a"))
        async with alongside(rig.liveness.run(never)):
            await asyncio.sleep(0.1)
        assert rig.members.is_live("a")

    play(test)


@pytest.mark.parametrize("believed", [False, True])
@pytest.mark.parametrize("changes", [{"stage": 900}, {"state": "left"}, {"version": 9}, {"state": "joining"}])
def test_what_others_say_of_a_near_peer_changes_nothing(changes: dict[str, Any], believed: bool) -> None:
    async def test() -> None:
        rig = Rig(card("a"))
        rig.members.standing.note_record({"a": 0})
        rig.liveness.hear_of(card("a", incarnation=1 << 61, **changes), believed=believed)
        assert (rig.members.get("a"), rig.gone(), rig.members.rumours.cards()) == (card("a"), [], [])

    play(test)


def test_what_others_say_of_a_far_peer_counts_if_they_and_it_have_worked() -> None:
    async def test() -> None:
        rig = Rig()
        rig.members.standing.note_record({"a": FAR})
        rig.liveness.hear_of(card("a", stage=FAR, state="left"), believed=True)
        rig.liveness.hear_of(card("a", stage=FAR))
        rig.liveness.hear_of(card("b", stage=FAR), believed=True)
        assert rig.members.stage(FAR) == []
        rig.liveness.hear_of(card("a", stage=FAR), believed=True)
        rig.liveness.hear_of(card("a", stage=FAR, sequence=7), believed=True)
        assert rig.members.stage(FAR) == [card("a", stage=FAR, sequence=7)]
        rig.liveness.hear_of(finished := card("a", stage=FAR, sequence=8, state="finished"), believed=True)
        assert (rig.members.get("a"), rig.gone()) == (finished, []), "nobody is taken for dead at a run's end"

    play(test)


def test_before_the_first_record_a_far_peer_counts_by_the_word_of_one_at_its_stage() -> None:
    """Nobody has worked, and not everyone in a large swarm is met: those far away were dropped as silent."""

    async def test() -> None:
        rig = Rig()
        rig.liveness.hear_of(card("a", stage=FAR))
        rig.liveness.hear_of(card("b", stage=FAR), believed=True)
        assert [it.peer for it in rig.members.stage(FAR)] == ["b"]

    play(test)


def test_nobody_s_number_is_topped_by_others() -> None:
    async def test() -> None:
        rig = Rig()
        rig.members.standing.note_record({"a": FAR})
        rig.liveness.hear_of(card("a", stage=FAR, incarnation=1 << 61), believed=True)
        assert rig.members.life_of("a") == 0, "it isn't told that it lived so late"
        rig.met(card("a", stage=0))
        assert (rig.members.get("a"), rig.members.life_of("a")) == (card("a", stage=0), 1)
        rig.liveness.hear_of(card("me", incarnation=1 << 61))
        await asyncio.sleep(0.1)
        assert (rig.own.card.incarnation, rig.told) == (5, [])

    play(test)


def test_of_a_crowd_from_one_network_few_count_and_the_latest_is_let_in_first() -> None:
    async def test() -> None:
        rig = Rig()
        rig.networks = {f"s{number}": "loopback" for number in range(200)} | {"honest": "loopback"}
        rig.members.standing.note_record({})  # before that a whole laboratory may come at once
        async with alongside(rig.liveness.run(never)):
            for number in range(200):
                rig.met(card(f"s{number}", stage=1))
            assert len(rig.members.stage(1)) == NEW_AT_ONCE
            rig.met(card("honest"))
            rig.met(card("other"))
            assert rig.members.is_live("other"), "who comes from elsewhere isn't delayed"
            assert not rig.members.is_live("honest")
            await asyncio.sleep(NEW_SECONDS + CALM_SWEEP_SECONDS)
            assert rig.members.is_live("honest")

    play(test)


@pytest.mark.parametrize(
    ("before", "after", "gone"),
    [
        ({}, {"state": "left"}, True),
        ({"state": "finished"}, {"state": "left"}, True),
        ({}, {"state": "joining"}, True),  # it came again, and has lost what it had
        ({"state": "joining"}, {"state": "joining"}, False),
        ({}, {"record_hash": "other"}, True),  # it goes over to another history
        ({"state": "joining"}, {"state": "serving", "record_hash": "other"}, False),
        ({"record_hash": "other"}, {"record_hash": "other"}, False),
        ({}, {"state": "draining"}, False),
        ({}, {}, False),
    ],
)
def test_a_peer_is_gone_that_leaves_begins_anew_or_goes_over(
    before: dict[str, Any], after: dict[str, Any], gone: bool
) -> None:
    async def test() -> None:
        rig = Rig()
        rig.members.fits = lambda it: it.record_hash != "other"
        rig.members.hear(card("a", **before), 0.0)
        rig.liveness.hear(card("a", sequence=2, **after))
        assert rig.gone() == ["a"] * gone

    play(test)


@pytest.mark.parametrize(
    ("changes", "waking"),
    [({}, 0), ({"forward": 3}, 0), ({"version": 4}, 1), ({"state": "draining"}, 1), ({"stage": 1}, 1)],
)
def test_those_who_wait_are_woken_by_all_but_figures(changes: dict[str, Any], waking: int) -> None:
    async def test() -> None:
        rig = Rig(card("a"))
        rig.liveness.hear(card("a", sequence=2, **changes))
        assert rig.changes == waking
        rig.met(card("b"))
        assert rig.changes == waking + 1

    play(test)


@pytest.mark.parametrize(
    ("incarnation", "sequence", "rises"),
    [(5, 5, False), (4, 9, False), (5, 6, True), (6, 0, True)],
)
def test_a_later_life_of_its_own_makes_it_go_above_that_and_say_so(
    incarnation: int, sequence: int, rises: bool
) -> None:
    async def test() -> None:
        rig = Rig()
        rig.liveness.hear(card("me", incarnation=incarnation, sequence=sequence))
        await asyncio.sleep(1)
        assert rig.members.own.incarnation == (incarnation + INCARNATION_STEP if rises else 5)
        assert [it.incarnation for it in rig.told] == [incarnation + INCARNATION_STEP] * rises
        assert rig.log == [], "nobody tells it about itself"

    play(test)


def test_a_later_life_of_another_peer_is_no_affair_of_its_own() -> None:
    async def test() -> None:
        rig = Rig()
        rig.liveness.hear(card("a", incarnation=9))
        await asyncio.sleep(1)
        assert (rig.members.own.incarnation, rig.told) == (5, [])

    play(test)


def test_of_two_later_lives_the_lower_is_below_it_once_it_has_gone_above_the_other() -> None:
    async def test() -> None:
        rig = Rig()
        rig.liveness.hear(card("me", incarnation=7))
        rig.liveness.hear(card("me", incarnation=6))
        await asyncio.sleep(1)
        assert [it.incarnation for it in rig.told] == [7 + INCARNATION_STEP]

    play(test)


def test_a_life_above_which_it_cannot_go_is_not_answered() -> None:
    async def test() -> None:
        rig = Rig()
        rig.liveness.hear(card("me", incarnation=1 << 62))
        await asyncio.sleep(1)
        assert (rig.members.own.incarnation, rig.told) == (5, [])

    play(test)


def test_a_handshake_is_a_sign_of_life_though_its_card_is_known() -> None:
    async def test() -> None:
        rig = Rig(card("a"))
        rig.members.suspect("a")
        await asyncio.sleep(7)
        rig.met(card("a"))
        assert rig.members.is_live("a")
        assert rig.members.members()["a"].heard == 7.0
        assert rig.log == []

    play(test)


# ------------------------------------------------------------------------------------------------- broken connections


@pytest.mark.parametrize(
    ("answer", "gone"),
    [
        (card("a"), False),
        (card("a", sequence=2), False),
        (card("a", incarnation=2), True),  # it lives, but another life
        (None, True),
    ],
)
def test_whose_connection_broke_is_gone_unless_the_same_life_answers(answer: Card | None, gone: bool) -> None:
    async def test() -> None:
        rig = Rig(card("a"))
        if answer is not None:
            rig.answers["a"] = answer
        rig.lost("a")
        assert rig.log == [("suspected", "a")]
        assert not rig.members.is_live("a"), "it isn't used meanwhile"
        assert rig.changes == 1
        await asyncio.sleep(0.1)
        assert rig.gone() == ["a"] * gone
        assert rig.members.is_live("a") == (answer is not None)

    play(test)


def test_a_stranger_whose_connection_broke_is_gone_and_is_not_dialled() -> None:
    async def test() -> None:
        rig = Rig()
        rig.answers["a"] = card("a")
        rig.lost("a")
        await asyncio.sleep(0.1)
        assert (rig.gone(), rig.calls) == (["a"], [])

    play(test)


def test_one_that_is_forgotten_while_it_is_called_is_gone() -> None:
    async def test() -> None:
        rig = Rig(card("a"))
        rig.answers["a"] = card("a")

        def forget(_: Card) -> None:
            rig.members.sweep(1e9)

        rig.met = forget
        rig.lost("a")
        await asyncio.sleep(0.1)
        assert rig.members.get("a") is None
        assert rig.gone() == ["a"]

    play(test)


def test_one_that_does_not_answer_is_waited_for_a_few_seconds() -> None:
    async def test() -> None:
        rig = Rig(card("a"))
        rig.deaf.add("a")
        rig.lost("a")
        await asyncio.sleep(LOOK_AGAIN_SECONDS - 0.1)
        assert rig.gone() == []
        await asyncio.sleep(0.2)
        assert rig.gone() == ["a"]

    play(test)


# ------------------------------------------------------------------------------------------------- the silent


def test_the_silent_are_dropped_and_called_until_they_answer() -> None:
    async def test() -> None:
        rig = Rig(card("a"))
        async with alongside(rig.liveness.run(never)):
            await asyncio.sleep(SILENCE_FLOOR_SECONDS - 0.1)
            assert rig.log == []
            await asyncio.sleep(CALM_SWEEP_SECONDS + 0.2)
            assert rig.log == [("dropped", "a"), ("gone", "a")]
            await asyncio.sleep(20)
            first, *_ = times = [at for at, _ in rig.calls]
            assert SILENCE_FLOOR_SECONDS < first <= SILENCE_FLOOR_SECONDS + CALM_SWEEP_SECONDS
            every = SEEK_SECONDS + CALM_SWEEP_SECONDS / 2  # it is looked at every 2 s
            assert times == [first + number * every for number in range(len(times))]
            assert len(times) >= 3
            rig.answers["a"] = card("a", sequence=2)
            await asyncio.sleep(every)
            assert rig.members.is_live("a")
            calls = len(rig.calls)
            await asyncio.sleep(2 * SEEK_SECONDS - 1)
            assert len(rig.calls) == calls

    play(test)


@pytest.mark.parametrize("state", ["left", "finished"])
def test_those_who_said_goodbye_are_not_looked_for(state: str) -> None:
    async def test() -> None:
        rig = Rig(card("a", state=state))
        async with alongside(rig.liveness.run(never)):
            await asyncio.sleep(60)
        assert rig.log == [("dropped", "a"), ("gone", "a")]
        assert rig.calls == []

    play(test)


def test_the_dropped_are_called_by_turns_and_all_at_once_when_one_of_them_is_heard() -> None:
    async def test() -> None:
        rig = Rig(*(card(f"p{number:02d}") for number in range(SOUGHT_AT_ONCE + 4)))
        async with alongside(rig.liveness.run(never)):
            await asyncio.sleep(32)
            assert rig.called() == ["p00", "p01", "p02", "p03"]
            rig.met(card("p07", sequence=2))
            await asyncio.sleep(0.1)
            turns = [f"p{number:02d}" for number in (*range(4, 7), *range(8, SOUGHT_AT_ONCE + 4), 0, 1, 2, 3)]
            assert rig.called()[4:] == turns[:SOUGHT_AT_ONCE], "the network may be whole again"
            rig.met(card("new"))
            await asyncio.sleep(0.1)
            assert len(rig.calls) == 4 + SOUGHT_AT_ONCE, "of someone who wasn't looked for that says nothing"

    play(test)


def test_one_that_is_being_called_is_not_called_again() -> None:
    async def test() -> None:
        rig = Rig(card("a"), card("b"), card("c"))
        async with alongside(rig.liveness.run(never)):
            await asyncio.sleep(SILENCE_FLOOR_SECONDS + CALM_SWEEP_SECONDS + 0.1)
            rig.deaf |= {"b", "c"}
            rig.liveness.hear(card("a", sequence=2))
            await asyncio.sleep(0.1)
            rig.members.hear(card("a", sequence=3, state="left"), now())
            rig.liveness._sought["a"] = None
            rig.liveness.hear(card("a", sequence=4))
            await asyncio.sleep(0.1)
            assert rig.called() == ["a", "b", "c"]
            await asyncio.sleep(LOOK_AGAIN_SECONDS)
            await asyncio.sleep(2 * SEEK_SECONDS)
            assert rig.called().count("b") >= 2, "but later"

    play(test)


def test_of_too_many_the_longest_sought_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SOUGHT_LIMIT", 2)

    async def test() -> None:
        rig = Rig(card("a"), card("b"), card("c"))
        async with alongside(rig.liveness.run(never)):
            await asyncio.sleep(60)
        assert set(rig.called()) == {"b", "c"}
        assert rig.gone() == ["a", "b", "c"]

    play(test)


def test_far_peers_that_need_not_be_known_fall_silent_without_a_word() -> None:
    async def test() -> None:
        near = [card(f"n{number:02d}", stage=1) for number in range(SMALL_SWARM)]
        few = [card(f"f{number}", stage=FAR) for number in range(FEW)]
        rig = Rig(*near, *few, card("spare", stage=FAR), card("only", stage=FAR + 1))

        def touch(at: float) -> float:
            for it in (*near, *few):
                rig.members.touch(it.peer, at)
            return never(at)

        async with alongside(rig.liveness.run(touch)):
            await asyncio.sleep(60)
        assert rig.log == [("dropped", "only"), ("gone", "only")]
        assert rig.members.get("spare") is None
        assert set(rig.called()) == {"only"}

    play(test)


def test_lateness_is_looked_at_when_something_is_due_but_neither_all_the_time_nor_hardly_ever() -> None:
    async def test() -> None:
        rig, looks, wishes = Rig(), list[float](), iter((0.0, 1.2, 1e9, -1.0, 0.0))

        def sweep(at: float) -> float:
            looks.append(at)
            return at + next(wishes)

        async with alongside(rig.liveness.run(sweep)):
            await asyncio.sleep(5.0)
        pauses = (SWEEP_SECONDS, SWEEP_SECONDS, 1.2, CALM_SWEEP_SECONDS, SWEEP_SECONDS)
        assert looks == pytest.approx([sum(pauses[: number + 1]) for number in range(len(pauses))])

    play(test)


@pytest.mark.parametrize(("late_s", "dropped"), [(STALL_SECONDS + 0.1, False), (STALL_SECONDS - 0.1, True)])
def test_one_that_was_stopped_itself_hears_what_waits_before_it_judges_anyone(late_s: float, dropped: bool) -> None:
    async def test() -> None:
        machine, rig = Machine("me"), Rig(card("a"))
        running = machine.spawn(rig.liveness.run(never))
        due = SWEEP_SECONDS + 6 * CALM_SWEEP_SECONDS  # the first look after 12 s of silence
        await asyncio.sleep(due - 1)
        machine.pause()
        await asyncio.sleep(1 + late_s)
        machine.resume()
        await asyncio.sleep(SWEEP_SECONDS / 2)
        rig.members.touch("a", now())
        await asyncio.sleep(1)
        assert rig.gone() == ["a"] * dropped
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    play(test)
