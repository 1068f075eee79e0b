"""Whom a hop is passed on to, when it goes elsewhere, and what is sent once more when a peer is lost."""

import asyncio
import random
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from swarmd.config import CodecConfig, LimitsConfig, ModelConfig, RunConfig
from swarmd.errors import HopForgotten, HopGivenUp, NotAllowed, PeerUnreachable, Refused
from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.hops.custodian import NOT_ALLOWED_SECONDS, Custodian
from swarmd.swarm.hops.retention import Retained
from swarmd.swarm.hops.step_sum import StepSums
from swarmd.swarm.hops.trials import PAUSE_SECONDS, TRIAL_SECONDS
from swarmd.swarm.membership.table import Membership
from swarmd.swarm.wire.messages.hop import Busy, Cancel, Gradient, Hop, Locate, Located, NotFinite, Room
from swarmd.swarm.wire.own_card import OwnCard
from swarmd.values import Encoded, HopId
from tests.swarm.cards import card
from tests.swarm.contexts import stage_context

RUN = RunConfig("toy", ModelConfig(8, 8, 4000, 1, 3, 3, 8), codecs=CodecConfig(activations="int8"))
STEP = 3
KEY = HopId(STEP, 1)
DATA = Encoded("fp32", (1,), (b"x",))
GRADIENT = Gradient(DATA, 0.0, 0.1)


class Peer:
    """A peer of the first stage, before replicas `b` and `c`; its links answer as `answers` says, one by one."""

    def __init__(self) -> None:
        chain = SimpleNamespace(is_newcomer=lambda peer: peer.startswith("new"))
        self.history = SimpleNamespace(version=STEP - 1, record_hash="r", record=None, chain=chain)
        self.members = Membership(OwnCard(card("a")))
        for peer in ("b", "c"):
            self.hear(peer)
        self.answers: dict[str, list[Any]] = {"b": [], "c": [], "new": [], "new2": []}
        self.here: set[str] = set()  # they have the hop
        self.asked: list[tuple[str, Any]] = []
        self.sums = StepSums()
        context = stage_context(
            run=RUN,
            limits=LimitsConfig(),
            links=SimpleNamespace(
                ask=self._ask, tell_all=self._tell_all, transport=SimpleNamespace(connected=lambda: self.answers)
            ),
            membership=self.members,
            history=self.history,
            rng=random.Random(0),
            scope=SimpleNamespace(handle=lambda kind, handler: None),
            tasks=SimpleNamespace(start=asyncio.ensure_future),
            sums=self.sums,
            stage=0,
        )
        self.custodian = Custodian(context)

    def hear(self, peer: str, **changes: Any) -> None:
        self.members.hear(card(peer, stage=1, codecs=("fp32", "int8"), **changes), 0.0)

    async def _ask(self, peer: str, message: Any, **options: Any) -> Any:
        self.asked.append((peer, message))
        if isinstance(message, Cancel):
            return None
        answer = self.answers[peer].pop(0) if self.answers[peer] else GRADIENT
        await asyncio.sleep(0.1)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def _tell_all(self, peers: list[str], message: Locate, **options: Any) -> dict[str, Located]:
        self.asked += [(peer, message) for peer in peers]
        return {peer: Located(peer in self.here) for peer in peers}

    def keep(self, *, again: bool = False) -> Retained:
        hop = self.custodian.message(KEY, b"", DATA, again=again)
        return self.custodian.retention.keep(KEY, hop)

    def of(self, kind: type) -> list[tuple[str, Any]]:
        return [(peer, message) for peer, message in self.asked if isinstance(message, kind)]


def virtually(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        run_virtual(test())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@virtually
async def test_the_runs_codec_is_taken_where_everyone_has_it() -> None:
    it = Peer()
    assert it.custodian.codec(("fp32", "int8")) == "int8"
    assert it.custodian.codec(("fp32",)) == "fp16"
    it.members.hear(card("d", stage=1, codecs=("fp32",)), 0.0)
    assert it.custodian.codec(("fp32", "int8")) == "fp16"


@virtually
async def test_an_answer_ends_it_and_the_message_may_be_evicted_from_then_on() -> None:
    it = Peer()
    retained = it.keep()
    assert await it.custodian.pass_on(retained) == GRADIENT
    assert (retained.answered, retained.sending, retained.holder) == (True, False, it.asked[0][0])
    assert it.asked[0][1] == Hop(STEP, 1, "r", False, False, "int8", b"", DATA, 0.0, 1)


@pytest.mark.parametrize("trouble", [PeerUnreachable("gone"), Refused("no"), TimeoutError()])
def test_where_no_answer_comes_the_same_bytes_go_elsewhere_and_the_holder_is_told(trouble: Exception) -> None:
    async def main() -> None:
        it = Peer()
        it.answers = {"b": [trouble], "c": [trouble]}
        assert await it.custodian.pass_on(it.keep()) == GRADIENT
        first, second = it.of(Hop)[:2]
        assert first[0] != second[0]
        assert (first[1].again, second[1].again, second[1].activation) == (False, True, DATA)
        assert (first[0], Cancel((tuple(KEY),))) in it.asked  # type: ignore[arg-type]

    run_virtual(main())


@virtually
async def test_before_it_is_sent_again_it_is_looked_for() -> None:
    it = Peer()
    it.here = {"c"}
    assert await it.custodian.pass_on(it.keep(again=True)) == GRADIENT
    assert [peer for peer, _ in it.of(Hop)] == ["c"]
    assert [peer for peer, _ in it.of(Locate)] == ["b", "c"]


@virtually
async def test_a_busy_one_is_asked_again_when_it_has_room() -> None:
    it = Peer()
    it.answers = {"b": [Busy(1)], "c": [Busy(1)]}
    passing = asyncio.create_task(it.custodian.pass_on(it.keep()))
    await asyncio.sleep(1)
    assert len(it.of(Hop)) == 2 and not passing.done()
    await it.custodian._answer_room("c", Room(1))
    await passing
    assert [peer for peer, _ in it.of(Hop)][2:] == ["c"]
    assert not it.of(Cancel) and not it.of(Hop)[2][1].again


@virtually
async def test_a_word_of_room_may_be_lost() -> None:
    it = Peer()
    it.answers = {"b": [Busy(1)], "c": [Busy(1)]}
    assert await it.custodian.pass_on(it.keep()) == GRADIENT
    assert len(it.of(Hop)) == 3


@virtually
async def test_a_holder_that_gave_it_up_as_it_was_told_is_not_blamed() -> None:
    seconds = []
    for trouble in (HopGivenUp(), Refused("no")):
        it, began = Peer(), asyncio.get_running_loop().time()
        it.members.suspect("c")
        it.answers["b"] = [trouble]
        assert await it.custodian.pass_on(it.keep()) == GRADIENT
        seconds.append(asyncio.get_running_loop().time() - began)
    assert seconds[0] < 1.0 < seconds[1]  # it may have it again at once; one that refused is left alone for a while


@virtually
async def test_where_nobody_answers_for_this_peer_it_asks_again_soon_in_the_name_of_who_gave_it_last() -> None:
    it = Peer()
    it.members.suspect("c")
    it.answers = {"b": [NotAllowed("who gave you that?")] * 3, "c": []}
    it.custodian._handouts.take(STEP, 0, (1,), "first")
    passing = asyncio.create_task(it.custodian.pass_on(it.keep()))
    await asyncio.sleep(1.5 * NOT_ALLOWED_SECONDS)
    it.custodian._handouts.take(STEP, 0, (1,), "second")
    assert await passing == GRADIENT
    hops = [message for _, message in it.of(Hop)]
    assert [message.source for message in hops] == ["first", "first", "second", "second"]
    assert asyncio.get_running_loop().time() == pytest.approx(4 * 0.1 + 3 * NOT_ALLOWED_SECONDS)


@virtually
async def test_a_number_that_is_not_finite_is_an_answer() -> None:
    it = Peer()
    it.answers = {"b": [NotFinite()], "c": [NotFinite()]}
    assert await it.custodian.pass_on(it.keep()) == NotFinite()


def among_newcomers(*others: str) -> Peer:
    """A peer that knows newcomers `new` and `new2`, and these. The newcomers say that nothing is finite."""
    it = Peer()
    for peer in ("b", "c"):
        if peer not in others:
            it.members.suspect(peer)
    for peer in ("new", "new2"):
        it.hear(peer)
        it.answers[peer] = [NotFinite()] * 3
    it.custodian._full.update(others)  # the newcomers come first
    return it


@virtually
async def test_a_newcomers_word_that_a_number_is_not_finite_needs_the_opinion_of_one_that_is_none() -> None:
    it = among_newcomers("b")
    passing = asyncio.create_task(it.custodian.pass_on(it.keep()))
    await asyncio.sleep(1.0)
    it.custodian.peer_has_room("b")
    assert await passing == GRADIENT
    (first, hop), *others = it.of(Hop)
    assert first in ("new", "new2") and not hop.again
    assert [(peer, message.again) for peer, message in others] == [("b", True)]
    loop = asyncio.get_running_loop()
    assert [it.custodian.custody.is_mute(peer, loop.time()) for peer in (first, "b")] == [True, False]


@virtually
async def test_where_another_one_says_so_too_the_number_is_not_finite_and_nobody_is_blamed() -> None:
    it = among_newcomers("b")
    it.answers["b"] = [NotFinite()]
    it.custodian.peer_has_room("b")
    for _ in range(9):  # so that newcomers are asked first
        it.custodian.router.sent("b")
    assert await it.custodian.pass_on(it.keep()) == NotFinite()
    assert [peer for peer, _ in it.of(Hop)][1:] == ["b"]
    assert not any(it.custodian.custody.is_mute(peer, asyncio.get_running_loop().time()) for peer in it.answers)


@virtually
async def test_a_newcomers_word_counts_where_all_are_newcomers() -> None:
    it = among_newcomers()
    assert await it.custodian.pass_on(it.keep()) == NotFinite()
    assert len(it.of(Hop)) == 1


@virtually
async def test_nobody_waits_for_a_step_that_is_over() -> None:
    it = Peer()
    for peer in ("b", "c"):
        it.members.suspect(peer)
    passing = asyncio.create_task(it.custodian.pass_on(it.keep()))
    await asyncio.sleep(1)
    assert not passing.done()
    it.history.record_hash = "next"
    it.sums.changed.notify()
    with pytest.raises(HopForgotten, match="is over"):
        await passing


@virtually
async def test_a_hop_that_was_kept_anew_meanwhile_is_left_to_that_journey() -> None:
    it = Peer()
    it.answers = {"b": [Refused("no")], "c": [Refused("no")]}
    retained = it.keep()
    passing = asyncio.create_task(it.custodian.pass_on(retained))
    await asyncio.sleep(0.05)
    it.custodian.retention.drop(KEY)
    it.keep()
    with pytest.raises(HopForgotten, match="another journey"):
        await passing


@virtually
async def test_where_a_round_named_members_it_goes_to_one_of_these() -> None:
    it = Peer()
    assert not it.custodian.bring_to(KEY, ("c",))  # nothing of it is here yet
    await it.custodian.pass_on(it.keep())
    assert [peer for peer, _ in it.of(Hop)] == ["c"]
    assert it.custodian.bring_to(KEY, ("b",))
    await asyncio.sleep(1)
    assert [(peer, hop.again) for peer, hop in it.of(Hop)] == [("c", False), ("b", True)]


@virtually
async def test_what_a_lost_peer_had_answered_is_sent_again_unless_it_has_an_heir() -> None:
    it = Peer()
    retained = it.keep()
    await it.custodian.pass_on(retained)
    holder, other = retained.holder, "c" if retained.holder == "b" else "b"
    it.custodian.peer_lost(holder, heir=other)
    await asyncio.sleep(1)
    assert (len(it.of(Hop)), retained.holder, retained.answered) == (1, other, True)
    it.members.suspect(other)
    it.custodian.peer_lost(other)
    await asyncio.sleep(1)
    assert [peer for peer, _ in it.of(Hop)] == [holder, holder]
    assert retained.answered and it.of(Hop)[1][1].again


@virtually
async def test_a_peer_that_is_cut_off_does_not_send_everything_again() -> None:
    it = Peer()
    retained = it.keep()
    await it.custodian.pass_on(retained)
    it.history.record = SimpleNamespace(stages=[SimpleNamespace(stage=1, members=("b", "c", "d", "e"))])
    it.members.suspect(retained.holder)
    it.custodian.peer_lost(retained.holder)
    await asyncio.sleep(1)
    assert len(it.of(Hop)) == 1  # though another replica is there


@virtually
async def test_a_computed_message_is_brought_unless_it_is_there_or_over() -> None:
    it = Peer()
    hop = it.custodian.message(KEY, b"", DATA, again=True)
    await it.custodian.bring_anew(KEY, hop, ("b",))
    assert [peer for peer, _ in it.of(Hop)] == ["b"]
    it.history.version = STEP
    over = HopId(STEP, 2)
    await it.custodian.bring_anew(over, it.custodian.message(over, b"", DATA, again=True), ("b",))
    assert len(it.of(Hop)) == 1


@virtually
async def test_a_step_that_has_ended_leaves_nothing() -> None:
    it = Peer()
    it.custodian.bring_to(KEY, ("c",))
    it.keep()
    it.custodian.end_step(STEP)
    assert (it.custodian.retention.nbytes, it.custodian._members) == (0, {})


@virtually
async def test_a_newcomer_has_one_hop_until_it_has_answered_one() -> None:
    it = Peer()
    it.members.standing.note_record({"a": 0, "c": 1})
    hop = it.keep().hop
    it.custodian.custody.track(HopId(STEP, 2), "b")
    assert {await it.custodian.choose(hop) for _ in range(9)} == {"c"}
    it.custodian.custody.done(HopId(STEP, 2))
    assert "b" in {await it.custodian.choose(hop) for _ in range(9)}
    it.custodian.custody.track(HopId(STEP, 2), "b")
    it.members.standing.note_work("b")
    assert "b" in {await it.custodian.choose(hop) for _ in range(9)}


@virtually
async def test_one_newcomer_s_hop_holds_up_another_s_for_seconds() -> None:
    it = Peer()
    it.hear("d")
    it.members.standing.note_record({"a": 0, "c": 1})
    hop = it.keep().hop
    it.custodian.custody.track(HopId(STEP, 2), "b")
    assert {await it.custodian.choose(hop) for _ in range(9)} == {"c"}
    await asyncio.sleep(TRIAL_SECONDS)
    assert "d" in {await it.custodian.choose(hop) for _ in range(9)}


@virtually
async def test_a_hop_that_a_newcomer_failed_with_goes_to_one_that_has_worked_and_the_next_trial_is_later() -> None:
    it = Peer()
    it.hear("d")
    it.members.standing.note_record({"a": 0, "c": 1})
    it.answers["b"] = it.answers["d"] = [Refused("not now")] * 9
    for index in range(20):
        key = HopId(STEP, index)
        await it.custodian.pass_on(it.custodian.retention.keep(key, it.custodian.message(key, b"", DATA, again=False)))
    hops = [(peer, hop.again) for peer, hop in it.of(Hop)]
    assert ("b", True) not in hops and ("d", True) not in hops
    tried = sum(peer in ("b", "d") for peer, _ in hops)
    assert tried == 1, "the next ones are within the pause"
    await asyncio.sleep(PAUSE_SECONDS)
    hop = it.custodian.message(HopId(STEP, 99), b"", DATA, again=False)
    assert {"b", "d"} & {await it.custodian.choose(hop) for _ in range(9)}


@virtually
async def test_whoever_answers_a_hop_has_worked() -> None:
    it = Peer()
    it.members.standing.note_record({"a": 0})
    await it.custodian.pass_on(it.keep())
    (first, _), *_ = it.of(Hop)
    assert [it.members.standing.has_worked(peer) for peer in "bc"] == [first == "b", first == "c"]


@virtually
async def test_where_all_are_newcomers_with_a_hop_the_next_one_waits_for_an_answer() -> None:
    it = Peer()
    it.members.standing.note_record({"a": 0})
    for index, peer in enumerate("bc"):
        it.custodian.custody.track(HopId(STEP, index), peer)
    waiting = asyncio.ensure_future(it.custodian.choose(it.keep().hop))
    await asyncio.sleep(60)
    assert not waiting.done()
    it.members.standing.note_work("c")
    it.custodian.peer_has_room("c")
    assert await waiting == "c"
