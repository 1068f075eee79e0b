"""A peer's voice: what it says and when, whom it believes, and with whom it keeps in touch."""

import asyncio
import dataclasses
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any, cast

import pytest

from swarmd.config import ModelConfig, RunConfig, fingerprint
from swarmd.errors import PeerFault, PeerUnreachable
from swarmd.sim.world.clock import run_virtual
from swarmd.status import PeerState
from swarmd.swarm.fence import Fence
from swarmd.swarm.membership.gossip import (
    ANNOUNCE_SECONDS,
    CHANGE_SECONDS,
    FIRST_SUMMARY_SECONDS,
    LOOKS_PER_HEARTBEAT,
    SECOND_DIAL_SECONDS,
    SECOND_WORD_SECONDS,
    STRANGERS,
    SUMMARY_CARDS,
    Gossip,
    Hear,
    cards_for,
    first_of,
)
from swarmd.swarm.membership.order import rendezvous
from swarmd.swarm.membership.table import (
    FEW,
    HEARTBEAT_SECONDS,
    SMALL_SWARM,
    Membership,
    heartbeat_interval,
    summary_interval,
)
from swarmd.swarm.tasks import alongside
from swarmd.swarm.wire.framing import from_frame, to_frame
from swarmd.swarm.wire.links import Links
from swarmd.swarm.wire.messages.common import Ack
from swarmd.swarm.wire.messages.fields import INCARNATION_LIMIT
from swarmd.swarm.wire.messages.presence import Announce, AskPlace, Card, Summary
from swarmd.swarm.wire.own_card import OwnCard
from swarmd.values import Frame
from tests.swarm.cards import card, crowd

STAGES = 5
RUN = RunConfig("toy", ModelConfig(8, 8, 8, 1, STAGES, STAGES, 8))


def topic(stage: int) -> str:
    return f"swarmd/{fingerprint(RUN)}/stage/{stage}"


EVERYONE = f"swarmd/{fingerprint(RUN)}/swarm"
LONG = dataclasses.replace(RUN, model=ModelConfig(8, 8, 8, 1, 40, 40, 8))
"""A run of so many stages that each is seldom summed up."""


class Rig:
    """Peer `me`, that hears and says everything through lists."""

    def __init__(self, stage: int = 2, *others: Card, run: RunConfig = RUN, own: str = "me") -> None:
        self.own = OwnCard(card(own, stage=stage))
        self.members = Membership(self.own)
        for it in others:
            self.members.hear(it, 0.0)
        self.listeners = dict[str, Callable[[str, Frame], None]]()
        self.said, self.heard = list[tuple[float, str, Any]](), list[Card]()
        self.connected, self.dials = [it.peer for it in others], list[tuple[float, str]]()
        self.met, self.asked, self.answers = set[str](), list[tuple[str, Any]](), dict[type, Any]()
        self.deaf, self.trouble = set[str](), dict[str, Exception]()
        self.sums = list[tuple[int, tuple[str, ...], int]]()
        self.cancelled = list[str]()
        self.greeted: Callable[[str], object] = lambda peer: None  # called when a greeting has succeeded
        transport = SimpleNamespace(
            subscribe=self.listeners.__setitem__,
            unsubscribe=self.listeners.pop,
            publish=self._publish,
            connected=lambda: tuple(self.connected),
        )
        self.fence = Fence()
        links = SimpleNamespace(
            own=self.own,
            transport=transport,
            fence=self.fence,
            handle=self.answers.__setitem__,
            introduce=self._introduce,
            ask=self._ask,
            greet=self._greet,
        )
        self.told = list[tuple[Card, bool]]()  # that others passed on, and whether they are believed
        ears = SimpleNamespace(
            hear=self._hear_own, hear_of=lambda it, *, believed=False: self.told.append((it, believed))
        )
        self.ears = ears
        self.gossip = Gossip(run, cast("Links", links), self.members, cast("Hear", ears), self._sum_up)

    def _hear_own(self, it: Card) -> None:
        self.heard.append(it)
        if it.peer.startswith("new"):
            self.members.rumours.hear(it, now())

    async def _publish(self, where: str, frame: Frame) -> None:
        self.said.append((now(), where, from_frame(frame)))

    async def _introduce(self, peer: str) -> bool:
        if peer in self.deaf:
            await asyncio.sleep(1000)
        if peer in self.trouble:
            raise self.trouble[peer]
        return peer not in self.met

    async def _ask(self, peer: str, message: Any, *, deadline_s: float | None) -> Ack:
        self.asked.append((peer, message))
        return Ack()

    async def _greet(self, peer: str) -> None:
        self.dials.append((now(), peer))
        try:
            if peer in self.deaf:
                await asyncio.sleep(1000)
        except asyncio.CancelledError:
            self.cancelled.append(peer)
            raise
        if peer in self.trouble:
            raise self.trouble[peer]
        self.connected.append(peer)
        self.greeted(peer)

    def _sum_up(self, stage: int, shown: tuple[Card, ...], peers: int) -> Summary:
        self.sums.append((stage, tuple(it.peer for it in shown), peers))
        return Summary(stage, shown, peers, power=7.0)

    def hear(self, author: str, message: Any) -> None:
        self.gossip._hear(author, to_frame(message))

    def times(self, where: str) -> list[float]:
        return [at for at, there, _ in self.said if there == where]


def now() -> float:
    return asyncio.get_running_loop().time()


def play(test: Callable[[Rig], Coroutine[Any, Any, None]], *others: Card, stage: int = 2, **options: Any) -> Rig:
    """Runs a test beside a peer that speaks."""

    async def main() -> Rig:
        rig = Rig(stage, *others, **options)
        async with alongside(rig.gossip.run()) as running:
            await test(rig)
            assert not running.done()
        return rig

    return run_virtual(main())


# ------------------------------------------------------------------------------------------------- whose cards


def test_for_a_stage_the_first_in_everyone_s_order_speak() -> None:
    cards = [card(name) for name in "abcdefgh"]
    order = rendezvous("summary/3", "abcdefgh")
    assert [it.peer for it in first_of(3, cards, 4)] == order[:4]
    assert [it.peer for it in first_of(3, reversed(cards), 99)] == order
    assert first_of(3, [], 4) == ()


def test_a_newcomer_of_a_large_swarm_is_told_of_all_who_are_near_and_a_few_of_each_other_stage() -> None:
    members = crowd(stages=10, replicas=20)
    told = [it.stage for it in cards_for(5, members)]
    assert [told.count(stage) for stage in range(10)] == [FEW, FEW, FEW, FEW, 20, 20, 20, FEW, FEW, FEW]
    assert len(cards_for(5, crowd(stages=4, replicas=10))) == 41


@pytest.mark.parametrize(("others", "told"), [(SMALL_SWARM - 1, SMALL_SWARM), (SMALL_SWARM, FEW)])
def test_a_newcomer_of_a_small_swarm_is_told_of_all(others: int, told: int) -> None:
    assert len(cards_for(5, crowd(stages=1, replicas=others))) == told


def test_the_few_that_a_newcomer_is_told_of_are_those_that_summaries_name() -> None:
    members = crowd(stages=10, replicas=20)
    told = {it.peer for it in cards_for(5, members) if it.stage == 9}
    assert told == {it.peer for it in first_of(9, members.stage(9), FEW)}


# ------------------------------------------------------------------------------------------------- hearing


@pytest.mark.parametrize(
    ("stage", "near"), [(-1, []), (0, [0, 1]), (2, [1, 2, 3]), (STAGES - 1, [STAGES - 2, STAGES - 1, STAGES])]
)
def test_one_hears_of_its_stage_its_neighbours_and_the_swarm(stage: int, near: list[int]) -> None:
    async def test(rig: Rig) -> None:
        await asyncio.sleep(0.1)
        assert set(rig.listeners) == {EVERYONE, *map(topic, near)}

    assert play(test, stage=stage).listeners == {}, "and of nothing when it is over"


def test_who_goes_elsewhere_hears_what_is_said_there() -> None:
    async def test(rig: Rig) -> None:
        await asyncio.sleep(0.1)
        rig.own.card = dataclasses.replace(rig.own.card, stage=3)
        await asyncio.sleep(HEARTBEAT_SECONDS)
        assert set(rig.listeners) == {EVERYONE, topic(2), topic(3), topic(4)}

    play(test)


def test_everyone_speaks_for_itself_only() -> None:
    rig = Rig()
    rig.hear("a", card("a"))
    rig.hear("b", card("c"))
    assert rig.heard == [card("a")]


def test_of_a_summary_so_many_cards_are_taken_in_whoever_speaks() -> None:
    rig, cards = Rig(), tuple(card(f"p{number}", stage=4) for number in range(SUMMARY_CARDS + 3))
    rig.members.hear(card("x", stage=4), 0.0)
    rig.members.standing.meet("x", "", 0.0)
    rig.hear("x", Summary(4, cards, 100, 5.0))
    assert rig.told == [(it, True) for it in cards[:SUMMARY_CARDS]]
    assert rig.members.summaries()[4] == Summary(4, (), 100, 5.0)


def test_its_own_card_in_a_summary_is_the_speaker_s_own_word() -> None:
    async def main() -> None:
        rig = Rig()
        rig.hear("x", Summary(4, (card("x", stage=4), card("y", stage=4)), 2))
        assert (rig.heard, rig.told) == ([card("x", stage=4)], [(card("y", stage=4), False)])

    run_virtual(main())


def believed(rig: Rig, author: str, stage: int) -> bool:
    """Whether a summary of a stage counts."""
    rig.members._reported.clear()
    rig.told.clear()
    rig.hear(author, Summary(stage, (card("y", stage=stage),), 1000))
    assert rig.told == [(card("y", stage=stage), bool(rig.members.summaries()))]
    return bool(rig.members.summaries())


def test_a_stranger_s_summary_counts_for_nothing() -> None:
    async def main() -> None:
        assert not believed(Rig(), "x", 4)

    run_virtual(main())


def test_before_the_first_record_a_summary_counts_if_its_author_was_met_at_that_stage() -> None:
    async def main() -> None:
        rig = Rig(2, card("x", stage=4), card("j", stage=4, state="joining"), card("unmet", stage=4))
        for peer in "xj":
            rig.members.standing.meet(peer, "", 0.0)
        assert [believed(rig, peer, 4) for peer in ("x", "j", "unmet")] == [True, False, False]
        assert not believed(rig, "x", 3)

    run_virtual(main())


def test_once_there_is_a_record_a_summary_counts_if_its_author_is_in_one() -> None:
    rig = Rig(2, card("x", stage=4), card("new", stage=4))
    for peer in ("x", "new"):
        rig.members.standing.meet(peer, "", 0.0)
    rig.members.standing.note_record({"x": 4, "far": 3})
    assert [believed(rig, peer, 4) for peer in ("x", "new", "far")] == [True, False, False]
    assert believed(rig, "far", 3), "though its card isn't known here"


@pytest.mark.parametrize(("stage", "begun", "dialled"), [(4, False, True), (4, True, False), (3, False, False)])
def test_before_the_first_record_who_speaks_for_a_stage_far_away_is_met_and_then_believed(
    stage: int, begun: bool, dialled: bool
) -> None:
    async def test(rig: Rig) -> None:
        if begun:
            rig.members.standing.note_record({})
        rig.greeted = lambda peer: rig.members.standing.meet(peer, "", 0.0) and rig.members.hear(said[0], 0.0)
        said = card("x", stage=stage), card("y", stage=stage)
        rig.members.hear(said[0], 0.0, told=True)
        rig.connected.append("x")
        for author in ("x", "x", "nobody"):
            rig.hear(author, Summary(stage, said, 9))
        await asyncio.sleep(0.1)
        assert [peer for _, peer in rig.dials] == ["x"] * dialled, "and nobody whose own card isn't there"
        assert list(rig.members.summaries()) == [stage] * dialled
        assert ((said[1], True) in rig.told) == dialled

    play(test)


def test_a_newcomer_s_rank_doesn_t_silence_those_of_its_stage_that_have_worked() -> None:
    names = ("a", "b", "c")
    first, second, third = rendezvous("summary/2", names)

    async def main() -> None:
        rig = Rig(2, card(first, stage=2), card(third, stage=2), own=second)
        rig.members.standing.note_record({second: 2, third: 2})
        await rig.gossip._speak_for(2)
        assert rig.sums == [(2, (second, third), 3)]

    run_virtual(main())


def test_what_a_stranger_says_of_a_stage_leaves_what_was_believed() -> None:
    async def main() -> None:
        rig = Rig(2, card("x", stage=4))
        rig.members.standing.meet("x", "", 0.0)
        rig.hear("x", Summary(4, (), 20))
        rig.hear("sybil", Summary(4, (), 4000))
        assert rig.members.summaries()[4].peers == 20

    run_virtual(main())


def test_a_card_of_another_stage_in_a_summary_is_not_believed() -> None:
    rig = Rig(2, card("x", stage=4))
    rig.members.standing.meet("x", "", 0.0)
    rig.hear("x", Summary(4, (card("y", stage=900),), 20))
    assert rig.told == [(card("y", stage=900), False)]


@pytest.mark.parametrize(
    "message",
    [
        Summary(STAGES, (card("a"),), 1),  # no such stage
        AskPlace(1, True),
        Announce(card("x")),
    ],
)
def test_what_no_honest_peer_says_is_dropped(message: Any) -> None:
    rig = Rig()
    rig.hear("x", message)
    assert (rig.heard, rig.members.summaries(), rig.fence.count) == ([], {}, 0)


def test_cards_beyond_those_that_are_taken_in_are_not_looked_at() -> None:
    rig = Rig()
    rig.hear("x", Summary(1, tuple(card(f"p{number}") for number in range(SUMMARY_CARDS + 1)), 99))
    assert len(rig.told) == SUMMARY_CARDS


def test_gossip_that_cannot_be_read_is_dropped() -> None:
    rig = Rig()
    rig.gossip._hear("x", Frame("Nonsense", {}))
    rig.gossip._hear("x", Frame("Card", {"peer": 3}))
    for message in (card("x"), Summary(1, (card("a"), card("x")), 2)):
        frame = to_frame(message)
        beyond = INCARNATION_LIMIT + 1  # nothing that its peer says later would count
        bodies = [frame.body] if isinstance(message, Card) else frame.body["cards"][1:]
        for body in bodies:
            body["incarnation"] = beyond
        rig.gossip._hear("x", frame)
    assert (rig.heard, rig.fence.count) == ([], 0)


def test_a_listener_that_fails_on_a_card_is_noted() -> None:
    async def main() -> None:
        rig = Rig()

        def fail(it: Card, **_: bool) -> None:
            raise KeyError(it.peer)

        rig.ears.hear = rig.ears.hear_of = fail
        rig.hear("a", card("a"))
        rig.hear("a", Summary(1, (card("b"), card("c")), 2))
        assert rig.fence.count == 3

    run_virtual(main())


# ------------------------------------------------------------------------------------------------- speaking


def test_one_without_a_place_says_nothing() -> None:
    async def test(rig: Rig) -> None:
        await asyncio.sleep(60)
        assert rig.said == []

    play(test, stage=-1)


def test_in_a_small_swarm_one_is_heard_every_two_seconds_with_a_newer_card_each_time() -> None:
    async def test(rig: Rig) -> None:
        await asyncio.sleep(5)
        spoken = [(at, it.peer, it.sequence) for at, where, it in rig.said if where == topic(2)]
        assert spoken == [(0.0, "me", 2), (2.0, "me", 3), (4.0, "me", 4)]

    play(test, card("a", stage=1))


def test_in_a_large_swarm_one_is_heard_again_soon_after_its_first_word_and_then_seldom() -> None:
    others = [card(f"p{number:02d}", stage=2) for number in range(60)]

    async def test(rig: Rig) -> None:
        pause = heartbeat_interval(61)
        await asyncio.sleep(SECOND_WORD_SECONDS + 3 * pause)
        first, second, third, fourth, *_ = rig.times(topic(2))
        assert first == 0.0
        assert SECOND_WORD_SECONDS <= second <= SECOND_WORD_SECONDS + pause / 8
        assert pause <= third - second <= pause * 9 / 8
        assert pause <= fourth - third <= pause * 9 / 8

    play(test, *others)


@pytest.mark.parametrize("in_touch", [True, False])
def test_in_a_large_swarm_one_looks_seldom_unless_it_is_out_of_touch_with_someone_near(in_touch: bool) -> None:
    async def test(rig: Rig) -> None:
        looks = list[float]()
        rig.members.expect_every = lambda *_: looks.append(now())  # type: ignore[method-assign]
        if not in_touch:
            rig.deaf.add("z")
            rig.connected.remove("z")
        await asyncio.sleep(20)
        seldom = heartbeat_interval(61) / LOOKS_PER_HEARTBEAT
        assert looks[:4] == (
            [0.0, seldom, SECOND_WORD_SECONDS, SECOND_WORD_SECONDS + seldom] if in_touch else [0, 2, 4, 6]
        )

    play(test, *(card(f"p{number:02d}", stage=2) for number in range(59)), card("z", stage=2))


def test_what_far_peers_say_slows_nobody_down() -> None:
    others = [card(f"p{number:02d}", stage=4 if number % 2 else 0) for number in range(60)]

    async def test(rig: Rig) -> None:
        await asyncio.sleep(5)
        assert rig.times(topic(2)) == [0.0, 2.0, 4.0]

    play(test, *others)


@pytest.mark.parametrize(
    ("stages", "stage", "heard"), [(5, 2, 40), (5, 0, 60), (5, 4, 60), (2, 0, 40), (2, 1, 40), (3, 1, 40)]
)
def test_words_are_expected_as_often_as_those_speak_who_hear_a_stage_more(stages: int, stage: int, heard: int) -> None:
    async def test(rig: Rig) -> None:
        expected = list[tuple[float, float]]()
        rig.members.expect_every = lambda *them: expected.append(them)  # type: ignore[method-assign]
        await asyncio.sleep(0.1)
        usual = heartbeat_interval(heard)
        assert expected == [(usual, max(usual, summary_interval(40, stages)))]

    run = dataclasses.replace(RUN, model=ModelConfig(8, 8, 8, 1, stages, stages, 8))
    play(test, *(card(f"p{number:02d}", stage=stage) for number in range(39)), stage=stage, run=run)


# ------------------------------------------------------------------------------------------------- summaries


def first_speaker(stage: int, *names: str) -> str:
    return rendezvous(f"summary/{stage}", names)[0]


@pytest.mark.parametrize("speaks", [True, False])
def test_the_first_of_a_stage_sums_it_up_for_everyone(speaks: bool) -> None:
    names = ("a", "b", "c")
    first = first_speaker(2, *names)
    own = first if speaks else next(name for name in names if name != first)
    others = [card(name, stage=2) for name in names if name != own]

    async def test(rig: Rig) -> None:
        await asyncio.sleep(FIRST_SUMMARY_SECONDS - 1)
        assert rig.times(EVERYONE) == []
        await asyncio.sleep(30)
        pause = summary_interval(3, STAGES)
        expected = [20.0, 20.0 + pause, 20.0 + 2 * pause]
        assert rig.times(EVERYONE) == (expected if speaks else [])
        if speaks:
            assert set(rig.sums) == {(2, tuple(rendezvous("summary/2", names)), 3)}
            assert {it.power for _, where, it in rig.said if where == EVERYONE} == {7.0}

    play(test, *others, card("z", stage=1), own=own)


@pytest.mark.parametrize("stages", [5, 6, 40])
def test_the_first_summary_waits_until_one_knows_its_stage_however_many_there_are(stages: int) -> None:
    run = dataclasses.replace(RUN, model=ModelConfig(8, 8, 8, 1, stages, stages, 8))

    async def main() -> list[float]:
        rig = Rig(run=run)
        async with alongside(rig.gossip.run()):
            await asyncio.sleep(FIRST_SUMMARY_SECONDS + 1)
        return [at for at, _, said in rig.said if isinstance(said, Summary)]

    assert run_virtual(main()) == [FIRST_SUMMARY_SECONDS]


@pytest.mark.parametrize(
    ("was", "changes"),
    [
        ("serving", {"moving": 3}),
        ("serving", {"state": "left"}),
        ("serving", {"state": "paused"}),
        ("serving", {"forward": 7}),
        ("finished", {"state": "left"}),
        ("finished", {"version": 7, "state": "finished"}),
    ],
)
def test_a_stage_whose_peers_come_go_or_move_is_summed_up_sooner(was: str, changes: dict[str, Any]) -> None:
    peer = next(name for name in "abcdef" if first_speaker(2, "me", name) == "me")
    pause, news = summary_interval(2, LONG.model.stages), "moving" in changes or changes.get("state") == "left"

    async def test(rig: Rig) -> None:
        summaries = list[float]()

        def sum_up(*about: Any) -> Summary:
            summaries.append(now())
            return Summary(2, (), 1)

        rig.gossip._sum_up = sum_up
        await asyncio.sleep(2.5 * pause + 0.5)
        before, changed = summaries[-1], now()
        assert CHANGE_SECONDS < changed - before < pause - CHANGE_SECONDS
        rig.members.hear(card(peer, stage=2, sequence=2, **changes), now())
        await asyncio.sleep(pause - (now() - before) - 1)
        told = [at for at in summaries if at > changed]
        assert len(told) == news
        assert all(at - changed <= HEARTBEAT_SECONDS for at in told)

    play(test, card(peer, stage=2, state=was), run=LONG)


@pytest.mark.parametrize(("population", "shown"), [(SMALL_SWARM, SUMMARY_CARDS), (SMALL_SWARM + 1, FEW)])
def test_of_a_stage_of_a_large_swarm_a_few_cards_are_shown(population: int, shown: int) -> None:
    names = [f"p{number:02d}" for number in range(population)]
    first = first_speaker(2, *names)

    async def main() -> None:
        rig = Rig(2, *(card(name, stage=2) for name in names if name != first), own=first)
        await rig.gossip._speak_for(2)
        assert [(len(peers), count) for _, peers, count in rig.sums] == [(shown, population)]

    run_virtual(main())


@pytest.mark.parametrize("state", ["serving", "finished"])
def test_those_who_have_finished_are_spoken_of_but_are_not_at_work(state: PeerState) -> None:
    """Nobody spoke of them: so at a run's end those far away took them for dead, with their final states."""
    names = ("a", "b", "c")
    first, other, third = rendezvous("summary/2", names)

    async def main() -> None:
        others = card(other, stage=2, state="finished"), card(third, stage=2, state="left")
        rig = Rig(2, *others, card("z", stage=1, state="finished"), own=first)
        rig.own.become(state)
        await rig.gossip._speak_for(2)
        assert rig.sums == [(2, (first, other), int(state == "serving"))]
        (_, _, summary) = rig.said[-1]
        assert isinstance(summary, Summary)
        assert summary.finished == 1 + (state == "finished")

    run_virtual(main())


@pytest.mark.parametrize("state", ["joining", "left"])
def test_for_a_stage_that_one_is_not_at_work_in_one_does_not_speak(state: PeerState) -> None:
    async def main() -> None:
        rig = Rig(2)
        rig.own.become(state)
        await rig.gossip._speak_for(2)
        assert rig.said == []

    run_virtual(main())


# ------------------------------------------------------------------------------------------------- announcements


def test_a_change_is_told_to_those_near_once_each_and_nobody_holds_up_another() -> None:
    async def main() -> None:
        rig = Rig(2, *(card(name, stage=2) for name in ("met", "new", "deaf", "lost")))
        rig.met |= {"met", "deaf", "lost"}
        rig.deaf.add("deaf")
        rig.trouble["lost"] = PeerUnreachable("lost")
        await rig.own.announce()
        assert now() == ANNOUNCE_SECONDS
        assert rig.asked == [("met", Announce(rig.own.card))], "whoever is greeted has the card by that"

    run_virtual(main())


def test_an_announcement_is_taken_from_its_peer_only() -> None:
    async def main() -> None:
        rig = Rig()
        answer = rig.answers[Announce]
        assert await answer("a", Announce(card("a"))) == Ack()
        with pytest.raises(PeerFault):
            await answer("a", Announce(card("b")))
        assert rig.heard == [card("a")]

    run_virtual(main())


# ------------------------------------------------------------------------------------------------- in touch


def test_those_near_are_everyone_in_a_small_swarm_and_the_own_stage_and_its_neighbours_in_a_large_one() -> None:
    others = [card(f"p{number:02d}", stage=number % STAGES) for number in range(SMALL_SWARM)]
    small = Rig(2, *others, card("gone", stage=2, state="left"))
    assert small.gossip._near() == [it.peer for it in others]
    large = Rig(2, *others, card("one", stage=0))
    assert large.gossip._near() == [it.peer for it in others if it.stage in (1, 2, 3)]
    large.members.standing.note_record({it.peer: it.stage for it in others})
    assert len(large.gossip._near()) == len(others) + 1, "one newcomer makes no swarm a large one"
    huge = Rig(2, *(card(f"p{number:03d}", stage=2) for number in range(5 * SMALL_SWARM)))
    assert len(huge.gossip._near()) == 4 * SMALL_SWARM
    huge.members.standing.note_record({"p239": 2})
    assert huge.gossip._near()[:2] == ["p239", "p000"], "those that have worked are not crowded out"


def test_of_two_that_are_not_connected_the_lower_dials_and_the_other_steps_in() -> None:
    async def test(rig: Rig) -> None:
        rig.members.hear(card("a"), now())
        rig.members.hear(card("z"), now())
        await asyncio.sleep(10)
        (first, low), (second, high) = rig.dials
        assert (first, low, high) == (0.0, "z", "a")
        assert SECOND_DIAL_SECONDS <= second <= SECOND_DIAL_SECONDS + HEARTBEAT_SECONDS
        assert rig.fence.count == 0

    play(test)


def test_one_that_is_connected_meanwhile_is_not_dialled() -> None:
    async def test(rig: Rig) -> None:
        rig.members.hear(card("a"), now())
        await asyncio.sleep(1)
        rig.connected.append("a")
        await asyncio.sleep(10)
        assert rig.dials == []
        rig.connected.remove("a")
        rig.members.hear(card("a", sequence=2, state="paused"), now())
        await asyncio.sleep(HEARTBEAT_SECONDS + 0.1)
        assert rig.dials == [], "it is given its time again"

    play(test)


def test_one_is_dialled_once_at_a_time_and_again_when_that_failed() -> None:
    async def test(rig: Rig) -> None:
        rig.trouble["y"] = PeerUnreachable("y")
        rig.deaf.add("z")
        rig.members.hear(card("y"), now())
        rig.members.hear(card("z"), now())
        await asyncio.sleep(5)
        assert rig.dials == [(0.0, "y"), (0.0, "z"), (2.0, "y"), (4.0, "y")]

    assert play(test).cancelled == ["z"], "nobody is dialled when it is over"


@pytest.mark.parametrize(("stage", "after"), [(2, 0.0), (1, 1.0)])
def test_a_newcomer_of_the_own_stage_that_speaks_is_greeted_at_once(stage: int, after: float) -> None:
    async def test(rig: Rig) -> None:
        await asyncio.sleep(1)
        rig.hear("new", card("new", stage=stage))
        rig.hear("new", card("new", stage=stage, sequence=2))
        await asyncio.sleep(0.5)
        assert [peer for _, peer in rig.dials] == ["new"][: stage == 2], "once, though it speaks twice"
        await asyncio.sleep(1)
        assert rig.dials[0] == (1.0 + after, "new")

    play(test)


def test_so_many_newcomers_are_dialled_at_a_time() -> None:
    async def test(rig: Rig) -> None:
        for number in range(2 * STRANGERS):
            rig.deaf.add(f"new{number}")
            rig.hear(f"new{number}", card(f"new{number}", stage=2))
        await asyncio.sleep(2 * HEARTBEAT_SECONDS)
        assert len(rig.dials) == STRANGERS

    play(test)


def test_who_can_not_be_met_is_forgotten_and_those_who_wait_for_it_hear_of_that() -> None:
    async def test(rig: Rig) -> None:
        rig.trouble["new"] = PeerUnreachable("new")
        rig.hear("new", card("new", stage=2))
        assert await rig.members.changed.until(lambda: "new" not in rig.members.rumours, 1.0)

    play(test)


def test_a_voice_that_begins_again_follows_everything_again() -> None:
    async def main() -> None:
        rig = Rig(2)
        for _ in range(2):
            async with alongside(rig.gossip.run()):
                await asyncio.sleep(0.1)
                assert len(rig.listeners) == 4
            assert rig.listeners == {}

    run_virtual(main())
