"""Who leads a step, as peers near the heads and far from them see it, and when the one that leads falls silent."""

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any, cast

import pytest

from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.history.ballots import Mandate
from swarmd.swarm.membership.order import conductor_order
from swarmd.swarm.membership.table import SILENCE_FLOOR_SECONDS, SMALL_SWARM, Membership
from swarmd.swarm.steps.succession import Succession
from swarmd.swarm.wire.messages.common import Ack, Ballot
from swarmd.swarm.wire.messages.step import TookOver
from swarmd.swarm.wire.own_card import OwnCard
from tests.swarm.cards import card

STAGES = 8
STEP = 2
HEADS, MIDDLES = ("h1", "h2", "h3"), ("m1", "m2", "m3")
FIRST, SECOND, THIRD = conductor_order(STEP, [card(peer) for peer in HEADS], HEADS)


class Seat:
    """One peer's view, with a network that only notes what is told."""

    def __init__(self, own: str, own_stage: int, peers: dict[str, int], members: dict[int, tuple[str, ...]]) -> None:
        self.membership = Membership(OwnCard(card(own, stage=own_stage, version=STEP - 1)))
        for peer, stage in peers.items():
            if peer != own:
                self.membership.hear(card(peer, stage=stage, version=STEP - 1), 0.0)
        everyone = tuple(peer for stage in sorted(members) for peer in members[stage])
        self.history: Any = SimpleNamespace(
            version=STEP - 1,
            record_hash="r",
            record=SimpleNamespace(stages=[SimpleNamespace(members=members[stage]) for stage in sorted(members)]),
            chain=SimpleNamespace(members=lambda stage=None: everyone if stage is None else members[stage]),
        )
        self.told: list[tuple[str, TookOver]] = []
        self.deaf: set[str] = set()
        self.seen: list[tuple[int, int]] = []  # steps, and numbers of ballots
        own_card = self.membership._own_card
        links: Any = SimpleNamespace(handle=lambda kind, handler: None, tell_all=self._tell_all, own=own_card)
        tasks: Any = SimpleNamespace(start=self._start)
        self.succession = Succession(links, self.membership, cast("Any", self.history), tasks, self._see)
        self.tasks: list[asyncio.Task[None]] = []

    def _see(self, step: int, number: int) -> None:
        self.seen.append((step, number))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        self.tasks.append(asyncio.ensure_future(work))

    async def _tell_all(self, peers: list[str], lead: TookOver, *, deadline_s: float) -> dict[str, Ack]:
        self.told += [(peer, lead) for peer in peers if peer not in self.deaf]
        return {peer: Ack() for peer in peers if peer not in self.deaf}

    def hear(self, *peers: str, now: float) -> None:
        for peer in peers:
            self.membership.touch(peer, now)


def seat(own: str) -> Seat:
    peers = {**dict.fromkeys(HEADS, 0), **dict.fromkeys(MIDDLES, 1)}
    return Seat(own, peers[own], peers, {0: HEADS, 1: MIDDLES})


def far(own_stage: int, heads: list[str], members: list[str], others: int) -> Succession:
    """The view of a peer that knows some heads; the last record's heads are `members`."""
    peers = {**dict.fromkeys(heads, 0), **{f"p{number:03d}": 1 + number % (STAGES - 1) for number in range(others)}}
    return Seat("me", own_stage, peers, {0: tuple(members)}).succession


@pytest.mark.parametrize("own_stage", [0, 1, 5])
def test_a_head_of_the_last_record_leads_in_everybodys_eyes(own_stage: int) -> None:
    assert far(own_stage, ["h1", "h2"], ["h2"], 2 * SMALL_SWARM).conductor_of(STEP) == "h2"


def test_who_is_far_from_the_heads_of_a_large_swarm_does_not_lead_because_it_knows_none_of_the_record() -> None:
    assert far(5, ["h1"], ["h2"], 2 * SMALL_SWARM).conductor_of(STEP) == ""


@pytest.mark.parametrize(("own_stage", "others"), [(1, 2 * SMALL_SWARM), (5, STAGES)])
def test_who_knows_all_heads_sees_when_those_of_the_record_are_gone(own_stage: int, others: int) -> None:
    assert far(own_stage, ["h1"], ["h2"], others).conductor_of(STEP) == "h1"


# ------------------------------------------------------------------------------------------------- the first step


def before_the_first_record(own: str, founder: str) -> Seat:
    it = Seat(own, 0 if own in HEADS else 1, {**dict.fromkeys(HEADS, 0), **dict.fromkeys(MIDDLES, 1)}, {})
    it.history.record, it.history.origin = None, SimpleNamespace(founder=founder)
    it.history.chain.members = lambda stage=None: ()
    return it


@pytest.mark.parametrize("own", [*HEADS, *MIDDLES])
@pytest.mark.parametrize("founder", ["h2", "m3"])
def test_the_founder_leads_the_first_step_wherever_it_is_and_though_it_still_opens_its_stage(
    own: str, founder: str
) -> None:
    it = before_the_first_record(own, founder)
    if own != founder:
        it.membership.hear(card(founder, stage=-1, state="joining", version=STEP - 1, sequence=9), 0.0)
    assert it.succession.conductor_of(STEP) == founder


@pytest.mark.parametrize("founder", ["gone", "", "left", "again"])
def test_where_the_founder_is_gone_the_head_that_came_first_leads_the_first_step(founder: str) -> None:
    it = before_the_first_record("m1", founder)
    it.membership.hear(card("left", stage=0, state="left", version=STEP - 1), 0.0)
    it.membership.hear(card("again", stage=0, arrival=9, version=STEP - 1), 0.0)  # it was started again
    for arrival, peer in ((3, "h1"), (1, "h2"), (2, "h3")):
        it.membership.hear(card(peer, arrival=arrival, version=STEP - 1, sequence=9), 0.0)
    assert it.succession.conductor_of(STEP) == "h2"


def test_the_head_that_came_first_takes_the_first_step_over_from_a_founder_that_is_silent() -> None:
    it = before_the_first_record("h1", "m3")
    it.hear("h2", "h3", "m1", "m2", now=LATE)
    it.succession.take_over(LATE)
    assert it.succession.conductor_of(STEP) == "h1"
    it.hear("m3", now=LATE)
    it.succession.take_over(LATE)
    assert it.succession.conductor_of(STEP) == "m3", "it is back in time"


def test_a_founder_that_is_back_leads_the_first_step_again_though_another_had_the_right_to() -> None:
    async def main() -> None:
        it = before_the_first_record("m1", "m3")
        await asyncio.sleep(LATE)
        it.hear("h1", "h2", "h3", "m2", now=LATE)
        await it.succession._answer_lead("h1", TookOver(STEP, "r", Ballot(60, "h1"), 1))
        assert it.succession.conductor_of(STEP) == "h1"
        it.hear("m3", now=LATE)
        assert it.succession.conductor_of(STEP) == "m3"
        await it.succession._answer_lead("m3", TookOver(STEP, "r", Ballot(1, "m3"), 1))
        assert it.succession.conductor_of(STEP) == "m3", "its own word counts under whatever ballot"
        it.membership.hear(card("m3", stage=1, state="left", version=STEP - 1, sequence=9), LATE)
        assert it.succession.conductor_of(STEP) == "h1"

    run_virtual(main())


@pytest.mark.parametrize(("own", "founder"), [("m1", "m1"), ("m1", "m2"), ("h1", "h1")])
def test_a_founder_that_cedes_the_first_step_comes_after_all_others_of_its_stage(own: str, founder: str) -> None:
    async def main() -> None:
        it = before_the_first_record(own, founder)
        for _ in range(2):
            it.succession.cede()
        assert it.membership.own.arrival == (1 if own == founder else 0)
        assert it.succession.conductor_of(STEP) == ("m2" if founder == "m2" else "h2" if own == "h1" else "h1")
        assert len(it.tasks) == (own == founder), "it tells the others once"
        await asyncio.gather(*it.tasks)

    run_virtual(main())


def test_after_the_first_record_nobody_cedes() -> None:
    it = before_the_first_record("m1", "m1")
    it.history.record = object()
    it.succession.cede()
    assert (it.membership.own.arrival, it.tasks) == (0, [])


# ------------------------------------------------------------------------------------------------- taking over

LATE = SILENCE_FLOOR_SECONDS / 2 + 1
OTHERS = {peer: [it for it in (*HEADS, *MIDDLES) if it != peer] for peer in HEADS}


def after_silence(own: str, silent: Callable[[str], bool]) -> Seat:
    """A while in which nothing was heard of some."""
    it = seat(own)
    it.hear(*(peer for peer in OTHERS[own] if not silent(peer)), now=LATE)
    it.succession.take_over(LATE)
    return it


def test_the_next_in_order_takes_over_from_one_that_is_silent() -> None:
    assert after_silence(SECOND, lambda peer: peer == FIRST).succession.conductor_of(STEP) == SECOND


def test_nobody_else_does_and_nobody_from_one_that_speaks() -> None:
    assert after_silence(THIRD, lambda peer: peer == FIRST).succession.conductor_of(STEP) == FIRST
    assert after_silence(SECOND, lambda peer: peer == THIRD).succession.conductor_of(STEP) == FIRST


def test_whoever_is_next_after_two_that_are_silent_takes_over() -> None:
    assert after_silence(THIRD, lambda peer: peer in (FIRST, SECOND)).succession.conductor_of(STEP) == THIRD


def test_whoever_hears_of_hardly_anyone_takes_nothing_over() -> None:
    it = after_silence(SECOND, lambda peer: peer != MIDDLES[0])
    assert it.succession.conductor_of(STEP) == FIRST
    assert it.succession.is_cut_off(LATE)


def test_those_that_are_given_up_cut_nobody_off() -> None:
    """A half of a swarm that stays alone goes on in the end."""
    it = after_silence(SECOND, lambda peer: peer != MIDDLES[0])
    it.membership.sweep(1_000.0)
    assert not it.succession.is_cut_off(1_000.0)


def mandate(ballot: Ballot, parent: str = "r") -> Mandate:
    return Mandate(STEP, parent, ballot, HEADS, forked=False, bound=None, decided=None)


def test_who_took_over_tells_everyone_and_again_whoever_did_not_hear() -> None:
    async def main() -> None:
        await asyncio.sleep(LATE)
        it = after_silence(SECOND, lambda peer: peer == FIRST)
        it.deaf = {MIDDLES[0]}
        it.succession.lead(mandate(Ballot(2, SECOND)))
        await asyncio.gather(*it.tasks)
        assert {peer for peer, _ in it.told} == {THIRD, *MIDDLES[1:]}, "nobody waits for the silent one"
        it.deaf, it.told[:] = set(), []
        it.hear(FIRST, now=LATE)
        it.succession.tell(LATE)
        it.succession.tell(LATE)
        await asyncio.gather(*it.tasks)
        assert {peer for peer, _ in it.told} == {FIRST, MIDDLES[0]}
        assert len(it.told) == 2
        assert it.succession.conductor_of(STEP) == SECOND, "though the one that was silent is back"

    run_virtual(main())


def hears(it: Seat, peer: str, lead: TookOver) -> str:
    run_virtual(it.succession._answer_lead(peer, lead))
    return it.succession.conductor_of(STEP)


def test_everyone_follows_whoever_leads_under_the_highest_ballot_as_long_as_it_lives() -> None:
    it = seat(MIDDLES[0])
    assert it.succession.conductor_of(STEP) == FIRST
    assert hears(it, THIRD, TookOver(STEP, "r", Ballot(3, THIRD), 1)) == THIRD
    assert hears(it, SECOND, TookOver(STEP, "r", Ballot(2, SECOND), 1)) == THIRD, "an older word"
    assert it.seen == [(STEP, 3), (STEP, 2)]
    it.membership.suspect(THIRD)
    assert it.succession.conductor_of(STEP) == SECOND
    it.membership.suspect(SECOND)
    assert it.succession.conductor_of(STEP) == FIRST
    it.membership.touch(THIRD, 1.0)
    assert it.succession.conductor_of(STEP) == THIRD


def test_nobody_follows_one_that_was_started_anew_since_it_said_so() -> None:
    it = seat(MIDDLES[0])
    assert hears(it, THIRD, TookOver(STEP, "r", Ballot(3, THIRD), 1)) == THIRD
    it.membership.hear(card(THIRD, incarnation=2, version=STEP - 1), 1.0)
    assert it.succession.conductor_of(STEP) == FIRST


def test_when_the_last_to_take_over_is_gone_the_one_before_leads_again_in_everybodys_eyes() -> None:
    """Some haven't heard of the last one: all must ask the same."""
    for own in (MIDDLES[0], SECOND):
        it = seat(own)
        hears(it, SECOND, TookOver(STEP, "r", Ballot(2, SECOND), 1))
        assert hears(it, THIRD, TookOver(STEP, "r", Ballot(3, THIRD), 1)) == THIRD
        it.membership.suspect(THIRD)
        assert it.succession.conductor_of(STEP) == SECOND


def test_who_has_not_the_right_to_lead_yet_gives_way_when_the_silent_one_is_back() -> None:
    it = after_silence(SECOND, lambda peer: peer == FIRST)
    it.hear(FIRST, now=LATE + 1)
    it.succession.take_over(LATE + 1)
    assert it.succession.conductor_of(STEP) == FIRST


def test_one_that_was_silent_follows_when_it_comes_back() -> None:
    assert hears(seat(FIRST), SECOND, TookOver(STEP, "r", Ballot(2, SECOND), 1)) == SECOND


@pytest.mark.parametrize(
    ("peer", "lead"),
    [
        (SECOND, TookOver(STEP, "another", Ballot(2, SECOND), 1)),  # another history
        (SECOND, TookOver(STEP - 1, "r", Ballot(2, SECOND), 1)),  # over
        (SECOND, TookOver(STEP + 50, "r", Ballot(2, SECOND), 1)),  # nobody is there yet
        (SECOND, TookOver(STEP, "r", Ballot(2, THIRD), 1)),  # in somebody else's name
    ],
)
def test_other_words_change_nothing(peer: str, lead: TookOver) -> None:
    it = seat(MIDDLES[0])
    assert hears(it, peer, lead) == FIRST
    assert len(it.succession._leads) <= 1


def test_what_was_heard_of_steps_that_are_over_is_forgotten() -> None:
    it = seat(MIDDLES[0])
    for step in range(STEP, STEP + 20):
        it.history.version = step - 1
        run_virtual(it.succession._answer_lead(SECOND, TookOver(step, "r", Ballot(2, SECOND), 1)))
    assert len(it.succession._leads) == 1


def test_whatever_one_peer_says_it_leads_only_its_last_word_about_a_step_is_remembered() -> None:
    it = seat(MIDDLES[0])
    for number in range(100):
        for step in (STEP, STEP + 1):
            hears(it, SECOND, TookOver(step, f"history {number}", Ballot(number, SECOND), 1))
    assert sum(len(leads) for leads in it.succession._leads.values()) == 2
    assert hears(it, SECOND, TookOver(STEP, "r", Ballot(2, SECOND), 1)) == SECOND


def test_of_strangers_and_of_those_that_are_forgotten_nothing_is_remembered() -> None:
    it = seat(MIDDLES[0])
    hears(it, "stranger", TookOver(STEP, "r", Ballot(9, "stranger"), 1))
    assert not it.succession._leads
    hears(it, SECOND, TookOver(STEP, "r", Ballot(2, SECOND), 1))
    it.membership.hear(card(SECOND, sequence=2, state="left", version=STEP - 1), 1.0)
    it.membership.sweep(1.0)
    hears(it, THIRD, TookOver(STEP, "r", Ballot(3, THIRD), 1))
    assert [peer for leads in it.succession._leads.values() for peer in leads] == [THIRD]
