"""The place of a newcomer: whom it asks, what it makes of the answer, and which stage others name."""

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any, cast

import pytest

from swarmd.config import ModelConfig, RunConfig
from swarmd.errors import ConfigError, PeerFault, PeerUnreachable, Refused
from swarmd.sim.world.clock import run_virtual
from swarmd.sizes import needed_bytes
from swarmd.swarm.balance import places as module
from swarmd.swarm.balance.outlook import Outlook
from swarmd.swarm.balance.places import (
    OPINION_SECONDS,
    PLACE_SECONDS,
    PROMISE_SECONDS,
    RETRY_SECONDS,
    Entrance,
    Places,
)
from swarmd.swarm.history.origin import Origin
from swarmd.swarm.membership.gossip import cards_for
from swarmd.swarm.membership.table import SMALL_SWARM, Membership
from swarmd.swarm.wire.messages.fields import ARRIVALS_LIMIT
from swarmd.swarm.wire.messages.presence import AskPlace, Card, Place
from swarmd.swarm.wire.own_card import OwnCard
from tests.swarm.cards import card
from tests.swarm.contexts import peer_context

STAGES = 3
RUN = RunConfig("toy", ModelConfig(8, 8, 4000, 1, STAGES, STAGES, 8))
WANTS = AskPlace(-1, True)


class Rig:
    """Peer `me`; whom it asks answers with the place in `answers`, or not at all."""

    def __init__(self, entrance: Entrance, *others: Card, stage: int = -1, run: RunConfig = RUN, **own: Any) -> None:
        self.own = OwnCard(card("me", stage=stage, state="serving" if stage >= 0 else "joining", **own))
        self.members = Membership(self.own)
        for it in others:
            self.members.hear(it, 0.0)
        self.answers, self.asked = dict[str, Any](), list[tuple[float, str, AskPlace]]()
        self.greeted = list[str]()
        self.origin, self.heard, self.connected = Origin(), list[str](), list[str]()
        self.handlers = dict[type, Any]()
        links = SimpleNamespace(
            own=self.own,
            transport=SimpleNamespace(connected=lambda: tuple(self.connected)),
            handle=self.handlers.__setitem__,
            ask=self._ask,
            greet=self._greet,
        )
        self.history = SimpleNamespace(origin=self.origin, ready=False, record=None)
        history = self.history
        context = peer_context(run=run, links=links, membership=self.members, history=history)
        self.places = Places(context, entrance, Outlook(run, self.members), self._hear)

    def _hear(self, it: Card) -> None:
        self.heard.append(it.peer)
        self.members.hear(it, 0.0)

    async def _ask(self, peer: str, request: AskPlace, *, deadline_s: float) -> Place:
        assert deadline_s in (PLACE_SECONDS, OPINION_SECONDS)
        self.asked.append((now(), peer, request))
        answer = self.answers.get(peer, PeerUnreachable("nobody is there"))
        if isinstance(answer, Exception):
            raise answer
        return cast("Place", answer)

    async def _greet(self, peer: str) -> None:
        self.greeted.append(peer)

    async def answer(self, peer: str, ask: AskPlace = WANTS) -> Place:
        return cast("Place", await self.handlers[AskPlace](peer, ask))

    async def stage_of(self, peer: str, ask: AskPlace = WANTS) -> int:
        return (await self.answer(peer, ask)).stage

    def whom(self) -> list[str]:
        return [peer for _, peer, _ in self.asked]


def now() -> float:
    return asyncio.get_running_loop().time()


def play(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    run_virtual(test())


def each(*stages: int) -> list[Card]:
    """One peer of each of these stages."""
    return [card(f"p{number:02d}", stage=stage) for number, stage in enumerate(stages)]


# ------------------------------------------------------------------------------------------------- founders


@pytest.mark.parametrize(
    ("entrance", "resumes", "has_data", "stage"),
    [
        (Entrance(), False, True, 0),
        (Entrance(stage=2), False, True, 2),
        (Entrance(stage=2, used=1), True, True, 2),
        (Entrance(used=1), False, True, 0),  # a new run, whatever its disk is of
        (Entrance(used=1), True, True, 1),
        (Entrance(used=0), True, True, 0),
        (Entrance(used=0), True, False, 1),  # a head needs the data
        (Entrance(used=2), True, False, 2),
        (Entrance(used=STAGES), True, True, 0),  # of another run's shape
        (Entrance(), True, False, 1),
    ],
)
def test_a_founder_decides_by_itself(entrance: Entrance, resumes: bool, has_data: bool, stage: int) -> None:
    async def test() -> None:
        rig = Rig(entrance)
        rig.origin.found("me", resumes=resumes)
        rig.places.has_data = has_data
        assert await rig.places.find() == stage
        assert rig.asked == []

    play(test)


def test_a_founder_takes_a_stage_that_its_device_can_hold_if_there_is_one() -> None:
    sizes = [needed_bytes(RUN, stage) for stage in range(STAGES)]
    assert sizes[1] < sizes[0]

    async def test() -> None:
        assert await Rig(Entrance(), memory_bytes=sizes[1]).places.find() == 1
        assert await Rig(Entrance(), memory_bytes=1.0).places.find() == 0, "none: it tries all the same"

    play(test)


@pytest.mark.parametrize("stage", [-1, STAGES])
def test_a_stage_that_the_run_does_not_have_is_the_user_s_mistake(stage: int) -> None:
    async def test() -> None:
        with pytest.raises(ConfigError, match=f"--stage {stage}: this run has stages 0 to 2"):
            await Rig(Entrance(stage=stage)).places.find()

    play(test)


# ------------------------------------------------------------------------------------------------- asking


def test_those_connected_are_asked_first_then_those_known_then_the_entries_each_once() -> None:
    async def test() -> None:
        rig = Rig(Entrance(entries=("entry", "p00", "linked")), *each(0, 1))
        rig.connected = ["linked", "p01"]
        rig.answers["entry"] = Place(1, ())
        assert await rig.places.find() == 1
        assert rig.whom()[:4] == ["linked", "p01", "p00", "entry"]
        assert rig.asked[3][2] == AskPlace(-1, True, 0.0)

    play(test)


def test_a_joiner_asks_until_somebody_answers_and_says_whom_it_asked_in_vain() -> None:
    async def test() -> None:
        rig = Rig(Entrance(entries=("entry",)))
        finding = asyncio.create_task(rig.places.find())
        await asyncio.sleep(2.5 * RETRY_SECONDS)
        assert [at for at, _, _ in rig.asked] == [0.0, RETRY_SECONDS, 2 * RETRY_SECONDS]
        assert rig.places.tried == "entry: nobody is there"
        rig.answers["entry"] = TimeoutError()
        rig.members.changed.notify()
        await asyncio.sleep(0.1)
        assert len(rig.asked) == 4, "sooner if something changes"
        assert rig.places.tried == "entry: no answer"
        rig.answers["entry"] = Place(2, ())
        assert await finding == 2

    play(test)


def test_one_says_what_it_wants_and_has() -> None:
    async def test() -> None:
        rig = Rig(Entrance(stage=1, entries=("a",)), memory_bytes=8e9)
        rig.places.has_data = False
        rig.answers["a"] = Place(1, (card("a", stage=1),))
        assert await rig.places.find() == 1
        assert rig.asked == [(0.0, "a", AskPlace(1, False, 8e9))]

    play(test)


@pytest.mark.parametrize(
    ("used", "resumes", "wanted", "stage"),
    [
        (1, True, None, 1),
        (0, True, None, 0),
        (1, False, None, 2),
        (None, True, None, 2),
        (1, True, 0, 2),
        (STAGES, True, None, 2),
    ],
)
def test_where_a_run_goes_on_from_disks_one_serves_what_its_disk_is_of(
    used: int | None, resumes: bool, wanted: int | None, stage: int
) -> None:
    async def test() -> None:
        rig = Rig(Entrance(stage=wanted, used=used, entries=("a",)))
        rig.answers["a"] = Place(2, (card("a", stage=stage),), "f", resumes)
        assert await rig.places.find() == stage

    play(test)


@pytest.mark.parametrize("answer", [Place(STAGES, ()), Place(-1, ()), Refused("no"), PeerFault("nonsense")])
def test_an_answer_without_a_place_is_none(answer: Any) -> None:
    async def test() -> None:
        rig = Rig(Entrance(entries=("a", "b")))
        rig.answers = {"a": answer, "b": Place(2, (card("b", stage=2),))}
        assert await rig.places.find() == 2
        assert rig.whom() == ["a", "b"]

    play(test)


def test_the_run_s_beginning_is_learnt_with_the_place_by_one_that_has_told_nobody() -> None:
    async def test() -> None:
        rig = Rig(Entrance(entries=("a",)))
        rig.answers["a"] = Place(1, (card("a", stage=1, version=4),), "me", True)
        await rig.places.find()
        assert (rig.origin.founder, rig.origin.founded, rig.origin.heard) == ("me", False, 4)
        assert rig.origin.resumes
        rig.own.card = card("me", stage=1)
        await rig.answer("x")
        rig.origin.found("me", resumes=False)
        await rig.places.find()
        assert rig.origin.founded, "it has told others that it is the founder"

    play(test)


@pytest.mark.parametrize(("own", "given", "arrival"), [(0, 5, 5), (7, 5, 7), (0, 0, 1)])
def test_its_number_is_given_to_it_and_never_falls(own: int, given: int, arrival: int) -> None:
    async def test() -> None:
        rig = Rig(Entrance(entries=("a",)), arrival=own)
        rig.answers["a"] = Place(1, (), arrival=given)
        await rig.places.find()
        assert rig.own.card.arrival == arrival

    play(test)


def test_where_a_person_named_several_none_of_them_is_believed_alone() -> None:
    async def test() -> None:
        rig = Rig(Entrance(entries=("liar", "a", "b"), named=("liar", "a", "b")))
        false = card("a", stage=1, version=10**6, incarnation=1 << 61)
        rig.answers = {"liar": Place(1, (false,), "liar", True, ARRIVALS_LIMIT)}
        rig.answers |= {it: Place(2, (card("a", stage=2, version=3),), "f", arrival=4) for it in ("a", "b")}
        assert await rig.places.find() == 2
        assert rig.whom()[:3] == ["liar", "a", "b"]
        assert (rig.origin.founder, rig.origin.heard, rig.origin.guide) == ("f", 3, "a")
        assert (rig.own.card.arrival, rig.origin.resumes) == (4, False)

    play(test)


def test_of_several_that_a_person_named_one_that_answers_is_enough() -> None:
    async def test() -> None:
        rig = Rig(Entrance(entries=("a", "b"), named=("a", "b")))
        rig.answers["b"] = Place(2, (card("b", stage=2),), "f")
        assert await rig.places.find() == 2
        assert rig.origin.founder == "f"

    play(test)


# ------------------------------------------------------------------------------------------------- neighbours


@pytest.mark.parametrize(
    ("giver", "others", "asked"),
    [
        (2, (2, 1), []),  # it is there itself
        (1, (2, 1), []),  # it is a neighbour
        (0, (1, 2, 0), ["p01", "p00"]),  # the nearest first; the first is gone
        (0, (0,), []),  # nobody near is known
    ],
)
def test_one_of_those_near_its_place_is_asked_too_if_the_giver_is_far(
    giver: int, others: tuple[int, ...], asked: list[str]
) -> None:
    async def test() -> None:
        rig, cards = Rig(Entrance(entries=("giver",))), each(*others)
        rig.answers["giver"] = Place(2, (card("giver", stage=giver), *cards))
        for it in cards:
            if it.stage == 1:
                rig.answers[it.peer] = Place(2, (card("near", stage=2),))
        assert await rig.places.find() == 2
        assert rig.whom() == ["giver", *asked]
        assert all(ask.stage == 2 for _, peer, ask in rig.asked if peer != "giver"), "of its own stage"
        assert ("near" in rig.heard) == bool(asked)

    play(test)


def test_one_that_looks_for_a_place_itself_is_near_none() -> None:
    async def test() -> None:
        rig = Rig(Entrance(entries=("giver",)))
        rig.answers["giver"] = Place(0, (card("giver", stage=2), card("new", stage=-1, state="joining")))
        assert await rig.places.find() == 0
        assert rig.whom() == ["giver"]

    play(test)


def test_of_those_near_one_answer_is_enough_and_one_does_not_ask_itself() -> None:
    async def test() -> None:
        rig = Rig(Entrance(entries=("giver",)), stage=2)
        near = [card("y", stage=2), card("z", stage=2)]
        rig.answers = {"giver": Place(2, tuple(near)), "y": Place(2, ())}
        assert await rig.places.find() == 2
        assert rig.whom() == ["giver", "y"], "of the giver nothing is known"

    play(test)


# ------------------------------------------------------------------------------------------------- answering


def test_one_without_a_place_gives_none() -> None:
    async def test() -> None:
        with pytest.raises(Refused, match="looks for a place itself"):
            await Rig(Entrance()).answer("new")

    play(test)


def test_newcomers_that_come_together_get_different_places() -> None:
    async def test() -> None:
        rig = Rig(Entrance(), stage=0)
        assert [await rig.stage_of(peer) for peer in "abcdef"] == [1, 2, 2, 0, 1, 2], "the last has the most work"

    play(test)


def test_one_that_asks_again_gets_the_place_that_was_promised_to_it() -> None:
    async def test() -> None:
        rig = Rig(Entrance(), stage=0)
        assert [await rig.stage_of(peer) for peer in "aabbaa"] == [1, 1, 2, 2, 1, 1]

    play(test)


def test_one_that_was_here_before_is_not_counted_for_its_own_new_place() -> None:
    async def test() -> None:
        rig = Rig(Entrance(), *each(2), card("back", stage=1), stage=0)
        assert await rig.stage_of("back") == 1

    play(test)


def test_a_wish_is_granted_and_counts() -> None:
    async def test() -> None:
        rig = Rig(Entrance(), stage=0)
        assert await rig.stage_of("a", AskPlace(1, True)) == 1
        assert await rig.stage_of("b") == 2

    play(test)


@pytest.mark.parametrize("ends", ["it comes", "time", "it is lost"])
def test_a_promise_counts_until_the_newcomer_is_there_or_does_not_come(ends: str) -> None:
    async def test() -> None:
        rig = Rig(Entrance(), *each(1, 2), stage=0)
        assert await rig.stage_of("a", AskPlace(0, True)) == 0
        assert await rig.stage_of("b", AskPlace(1, True)) == 1
        assert await rig.stage_of("c", AskPlace(2, True)) == 2
        if ends == "it comes":
            rig.members.hear(card("a", stage=0), 0.0)
            assert [await rig.stage_of("d"), await rig.stage_of("e")] == [2, 0], "it doesn't count twice"
        elif ends == "time":
            await asyncio.sleep(PROMISE_SECONDS / 2)
            assert await rig.stage_of("a", AskPlace(0, True)) == 0
            await asyncio.sleep(PROMISE_SECONDS / 2 + 1)
            assert [await rig.stage_of("d"), await rig.stage_of("e")] == [2, 1], "a's was renewed"
        else:
            rig.places.lost("b")
            rig.places.lost("stranger")
            assert [await rig.stage_of("d"), await rig.stage_of("e")] == [1, 2]

    play(test)


def test_one_that_was_promised_a_place_and_went_elsewhere_counts_where_it_is() -> None:
    async def test() -> None:
        rig = Rig(Entrance(), *each(1, 2), stage=0)
        await rig.answer("a", AskPlace(0, True))
        rig.members.hear(card("a", stage=1), 0.0)
        assert [await rig.stage_of("b"), await rig.stage_of("c")] == [2, 0]

    play(test)


def test_one_that_was_promised_a_place_and_has_none_on_its_card_yet_counts() -> None:
    async def test() -> None:
        rig = Rig(Entrance(), *each(1, 2), stage=0)
        rig.members.hear(card("a", stage=-1, state="joining"), 0.0)
        assert await rig.stage_of("a") == 2
        assert await rig.stage_of("b") == 0

    play(test)


def test_of_too_many_promises_the_first_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROMISES_LIMIT", 2)

    async def test() -> None:
        rig = Rig(Entrance(), *each(0, 1, 1, 2, 2), stage=0)
        for peer, stage in (("a", 0), ("b", 1), ("c", 2)):
            await rig.answer(peer, AskPlace(stage, True))
        assert await rig.stage_of("d") == 0, "of a nobody knows any more"

    play(test)


@pytest.mark.parametrize(
    ("ask", "stage"),
    [
        (AskPlace(-1, True), 0),
        (AskPlace(-1, False), 2),
        (AskPlace(-1, True, needed_bytes(RUN, 1)), 1),
        (AskPlace(-1, True, needed_bytes(RUN, 0)), 0),
        (AskPlace(-1, True, 1.0), 0),  # it holds none: it may try
        (AskPlace(-1, True, float("nan")), 0),
    ],
)
def test_a_newcomer_gets_a_stage_for_which_it_has_the_data_and_the_memory(ask: AskPlace, stage: int) -> None:
    async def test() -> None:
        rig = Rig(Entrance(), *each(1, 2, 1, 2), stage=0)
        assert await rig.stage_of("new", ask) == stage

    play(test)


def test_one_that_can_hold_no_stage_may_try_the_one_that_needs_it_most() -> None:
    async def test() -> None:
        assert await Rig(Entrance(), stage=0).stage_of("new", AskPlace(-1, True, 1.0)) == 1
        only = Rig(Entrance(), run=RunConfig("toy", ModelConfig(8, 8, 8, 1, 1, 1, 8)))
        only.places.has_data = False
        assert await only.places.find() == 0, "there is no other"

    play(test)


def test_the_answer_names_those_near_the_place_and_how_the_run_began() -> None:
    async def test() -> None:
        rig = Rig(Entrance(), *each(*(number % STAGES for number in range(SMALL_SWARM + 2))), stage=0)
        rig.origin.found("f", resumes=True)
        place = await rig.answer("new", AskPlace(2, True))
        assert place == Place(2, cards_for(2, rig.members), "f", True, 1)

    play(test)


@pytest.mark.parametrize("begun", [False, True])
def test_before_the_first_record_the_answer_names_the_founder_however_far_it_is(begun: bool) -> None:
    async def test() -> None:
        rig = Rig(Entrance(), *each(*(number % STAGES for number in range(SMALL_SWARM + 20))), stage=1)
        near = {it.peer for it in cards_for(0, rig.members)}
        founder = next(it for it in rig.members.cards() if it.stage == 2 and it.peer not in near)
        rig.origin.founder, rig.history.record = founder.peer, object() if begun else None
        named = (await rig.answer("new", AskPlace(0, True))).cards
        assert (founder in named) != begun
        assert {it.peer for it in named} == near | ({founder.peer} if not begun else set())

    play(test)


@pytest.mark.parametrize("begun", [False, True])
def test_a_newcomer_greets_those_near_its_place_and_before_the_first_record_the_founder(begun: bool) -> None:
    async def test() -> None:
        rig = Rig(Entrance(entries=("a",)), card("a", stage=0))
        rig.places._hear_of = lambda it: rig.members.rumours.hear(it, 0.0)  # type: ignore[assignment]
        rig.history.record = object() if begun else None
        told = [card("founder", stage=2), *each(*(number % STAGES for number in range(SMALL_SWARM + 2)))]
        rig.answers["a"] = Place(0, tuple(told), "founder", False, 1)
        assert await rig.places.find() == 0
        assert {*rig.greeted} == {it.peer for it in told if it.stage < 2} | (set() if begun else {"founder"})

    play(test)


def test_each_newcomer_s_number_is_above_all_that_are_known_whatever_they_say() -> None:
    async def test() -> None:
        rig = Rig(Entrance(), card("a", stage=1, arrival=5), stage=0)
        assert [(await rig.answer(peer)).arrival for peer in "xyx"] == [6, 7, 8]
        rig.members.hear(card("b", stage=1, arrival=30), 0.0)
        assert (await rig.answer("z")).arrival == 31
        rig.members.hear(card("c", stage=1, arrival=ARRIVALS_LIMIT), 0.0)
        assert [(await rig.answer(peer)).arrival for peer in "uv"] == [ARRIVALS_LIMIT] * 2

    play(test)
