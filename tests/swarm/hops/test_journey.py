"""One microbatch at one peer: its answer, the sum afterwards, and what a freeze or a failure makes of it."""

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any, cast

import pytest

from swarmd.config import LimitsConfig, ModelConfig, RunConfig
from swarmd.errors import HopForgotten, HopGivenUp, NonFinite, NotAllowed, OutOfRange, PeerFault, Refused
from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.fence import Fence
from swarmd.swarm.hops.admission import Admission
from swarmd.swarm.hops.custodian import Custodian
from swarmd.swarm.hops.journey import Journeys
from swarmd.swarm.hops.retention import Answer, Retained, Retention
from swarmd.swarm.hops.step_sum import StepSums
from swarmd.swarm.hops.under_way import HopsUnderWay, HopUnderWay
from swarmd.swarm.hops.validation import Validation
from swarmd.swarm.wire.messages.hop import Blame, Busy, Cancel, Gradient, Hop, Locate, Located, Loss, NotFinite
from swarmd.values import BackwardResult, ComputeProgress, Encoded, HopId, TailResult
from tests.swarm.cards import card
from tests.swarm.contexts import stage_context

RUN = RunConfig("toy", ModelConfig(8, 8, 4000, 1, 3, 3, 8))
TAIL = RUN.model.stages - 1
STEP = 3
KEY = HopId(STEP, 1)
IN, OUT = Encoded("fp16", (1,), (b"in",)), Encoded("fp16", (1,), (b"out",))
BACK = Gradient(OUT, 0.0, 0.2)


def hop(index: int = 1, stage: int = TAIL, *, step: int = STEP, evaluate: bool = False) -> Hop:
    return Hop(step, index, "r", False, evaluate, "fp16", b"tokens", IN, 5.0, stage)


class Peer:
    """A peer of a stage, whose device takes a second for each task and counts unless its sum is frozen."""

    def __init__(self, stage: int = TAIL) -> None:
        self.stage = stage
        self.sums, self.hops, self.retention = StepSums(), HopsUnderWay(), Retention(1 << 20)
        self.device_frozen = False
        self.counted: set[int] = set()
        self.trouble: Exception | None = None
        self.tasks: list[str] = []
        self.forgotten: list[HopId] = []
        self.next_answer: Answer | Exception = BACK
        self.next_holder, self.next_seconds = "next", 1.0
        self.dropped: list[str] = []
        self.known: list[str] = []  # at every stage
        self.mute: list[str] = []
        self.ended: list[int] = []
        compute = SimpleNamespace(
            codecs=("fp16", "fp32"),
            tail=self._tail,
            forward=self._forward,
            backward=self._backward,
            forget=self.forgotten.append,
            progress=lambda: ComputeProgress(0, None, 0.0, 0.1, 0.2),
        )
        links = SimpleNamespace(fence=Fence(), transport=SimpleNamespace(drop=self._drop))
        context = stage_context(
            run=RUN,
            limits=LimitsConfig(in_flight_hops=2),
            links=links,
            membership=SimpleNamespace(own=SimpleNamespace(peer="me"), stage=lambda stage: map(card, self.known)),
            history=SimpleNamespace(
                version=STEP - 1,
                await_version=self._await_version,
                chain=SimpleNamespace(is_newcomer=lambda peer: peer.startswith("new")),
            ),
            scope=SimpleNamespace(handle=lambda kind, handler: None, links=links),
            tasks=SimpleNamespace(start=asyncio.ensure_future),
            sums=self.sums,
            hops=self.hops,
            compute=compute,
            stage=stage,
        )
        custodian: Any = SimpleNamespace(
            retention=self.retention,
            codec=lambda own: "fp16",
            message=self._message,
            pass_on=self._pass_on,
            end_step=self.ended.append,
            custody=SimpleNamespace(mute=lambda peer, now: self.mute.append(peer)),
        )
        validation: Any = SimpleNamespace(answer=self._validate)
        self.handouts = context.peer.handouts
        self.admission = Admission(context)
        self.journeys = Journeys(context, self.admission, cast("Custodian", custodian), cast("Validation", validation))

    def _count(self, key: HopId, *, subtract: bool) -> bool:
        if self.device_frozen:
            return subtract  # the index stays as it is
        if subtract:
            self.counted.discard(key.index)
            return False
        self.counted.add(key.index)
        return True

    async def _device(self, task: str) -> None:
        self.tasks.append(task)
        await asyncio.sleep(1)
        if self.trouble is not None:
            raise self.trouble

    async def _tail(self, key: HopId, tokens: bytes, activation: Any, *, codec: str, subtract: bool) -> TailResult:
        await self._device("tail")
        return TailResult(2.0, 4, OUT, self._count(key, subtract=subtract))

    async def _forward(self, key: HopId, tokens: bytes, activation: Any, *, codec: str) -> Encoded:
        await self._device("forward")
        return OUT

    async def _backward(self, key: HopId, gradient: Encoded, *, codec: str, subtract: bool) -> BackwardResult:
        await self._device("backward")
        return BackwardResult(OUT, self._count(key, subtract=subtract))

    async def _drop(self, peer: str) -> None:
        self.dropped.append(peer)

    async def _await_version(self, version: int, record: str, peer: str, seconds: float) -> None:
        assert version == STEP - 1

    def _message(self, key: HopId, tokens: bytes, out: Encoded, *, again: bool, horizon_s: float) -> Hop:
        return Hop(key.step, key.index, "r", again, False, "fp16", tokens, out, horizon_s, self.stage + 1)

    async def _pass_on(self, retained: Retained) -> Answer:
        retained.holder = self.next_holder
        await asyncio.sleep(self.next_seconds)
        if isinstance(self.next_answer, Exception):
            raise self.next_answer
        return self.next_answer

    async def _validate(self, message: Hop) -> Loss:
        return Loss(1.0, 1)

    async def ask(self, message: Hop, custodian: str = "before") -> Any:
        return await self.journeys._answer_hop(custodian, message)

    def freeze(self) -> None:
        self.sums.freeze(STEP)
        self.device_frozen = True

    def thaw(self) -> None:
        self.device_frozen = False
        self.sums.thaw(STEP)


def virtually(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        run_virtual(test())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@virtually
async def test_a_hop_is_answered_once_it_is_in_the_sum_and_from_the_record_from_then_on() -> None:
    it = Peer()
    answer = await it.ask(hop())
    assert (answer.gradient, it.sums.of(STEP).sources, it.sums.of(STEP).loss_sum) == (OUT, {1: "before"}, 2.0)
    assert await it.ask(hop(), "another") is answer
    assert (it.tasks, it.hops.busy) == (["tail"], False)


@virtually
async def test_who_asks_meanwhile_joins_the_work() -> None:
    it = Peer()
    first, second = await asyncio.gather(it.ask(hop()), it.ask(hop(), "another"))
    assert first is second and it.tasks == ["tail"]
    assert it.sums.of(STEP).sources == {1: "another"}  # who asked last waits for it


@virtually
async def test_a_newcomer_that_the_hop_did_not_come_from_hears_what_became_of_it_and_nothing_else() -> None:
    it = Peer()
    with pytest.raises(NotAllowed):
        await it.ask(hop(), "new")
    assert (it.tasks, it.hops.busy) == ([], False)
    first = asyncio.create_task(it.ask(hop()))
    await asyncio.sleep(0.5)
    second = asyncio.create_task(it.ask(hop(), "new"))
    await asyncio.sleep(0.1)
    await it.journeys._answer_cancel("new", Cancel((KEY,)))
    assert await first is await second is await it.ask(hop(), "new")
    assert (it.tasks, it.sums.of(STEP).sources) == (["tail"], {1: "before"})
    assert it.handouts.source(STEP, TAIL, 1) == "before"
    it.retention.drop_answer(KEY)
    with pytest.raises(NotAllowed):
        await it.ask(hop(), "new")
    it.handouts.take(STEP, TAIL, (2,), "new")
    await it.ask(hop(2), "new")
    assert it.sums.of(STEP).sources == {1: "before", 2: "new"}


@virtually
async def test_who_gives_again_what_is_answered_answers_for_it_from_then_on() -> None:
    it = Peer()
    await it.ask(hop())
    await it.ask(hop(), "another")
    assert it.handouts.source(STEP, TAIL, 1) == "another"


@virtually
async def test_a_middle_stage_passes_it_on_and_brings_the_gradient_back() -> None:
    it = Peer(1)
    answer = await it.ask(hop(stage=1))
    assert (answer.gradient, it.tasks, it.sums.of(STEP).accumulated) == (OUT, ["forward", "backward"], {1})
    retained = it.retention.retained(KEY)
    assert retained is not None and (retained.hop.activation, retained.hop.horizon_s) == (OUT, 5.0)


@virtually
async def test_no_more_are_admitted_than_fit_but_what_is_done_is_answered_by_one_that_pauses() -> None:
    it = Peer()
    both = asyncio.gather(it.ask(hop(1)), it.ask(hop(2)))
    await asyncio.sleep(0.5)
    assert await it.ask(hop(3)) == Busy(2)
    await both
    it.admission.pause()
    it.retention.drop_answer(KEY)
    assert await it.ask(hop(3)) == Busy(0)
    assert (await it.ask(hop(1))).gradient == OUT
    it.admission.close()
    with pytest.raises(Refused, match="no more hops"):
        await it.ask(hop(3))


@pytest.mark.parametrize(
    ("peer", "message", "trouble"),
    [
        (0, hop(stage=0), Refused),
        (1, hop(stage=2), Refused),
        (TAIL, hop(RUN.microbatches), OutOfRange),
        (TAIL, hop(-1), OutOfRange),
        (TAIL, hop(step=0), OutOfRange),
    ],
)
def test_what_cannot_be_for_this_peer_is_not_computed(peer: int, message: Hop, trouble: type[Exception]) -> None:
    async def main() -> None:
        it = Peer(peer)
        with pytest.raises(trouble):
            await it.ask(message)
        assert it.tasks == []

    run_virtual(main())


@virtually
async def test_validation_needs_no_room_and_leaves_nothing() -> None:
    it = Peer()
    it.admission.pause()
    assert await it.ask(hop(RUN.microbatches, evaluate=True)) == Loss(1.0, 1)
    assert it.sums.of(STEP).empty


@virtually
async def test_a_hop_waits_while_the_sum_is_frozen_and_counts_when_it_thaws() -> None:
    it = Peer()
    it.freeze()
    asking = asyncio.create_task(it.ask(hop()))
    await asyncio.sleep(10)
    assert it.tasks == [] and not asking.done()
    it.thaw()
    await asking
    assert it.sums.of(STEP).accumulated == {1}


@virtually
async def test_a_hop_that_spoils_the_frozen_sum_already_does_not_wait_for_it() -> None:
    """Its answer may be gone, or have been another peer's, whose sum was handed over: who asks waits for the round."""
    it = Peer()
    it.sums.of(STEP).spoil(1, Blame("loss", TAIL, "other", 1))
    it.freeze()
    it.trouble = NonFinite("loss is nan", "loss")
    async with asyncio.timeout(10):
        assert isinstance(await it.ask(hop()), NotFinite)


@virtually
async def test_a_hop_whose_round_succeeded_without_it_is_answered_but_not_recorded() -> None:
    it = Peer()
    asking = asyncio.create_task(it.ask(hop()))
    await asyncio.sleep(0.5)
    it.freeze()
    await asyncio.sleep(10)
    assert not asking.done()
    it.sums.settle(STEP)
    assert (await asking).gradient == OUT
    assert it.sums.of(STEP).empty and it.retention.answer(KEY) is None


@virtually
async def test_a_hop_that_a_freeze_left_out_comes_again_when_the_round_begins_anew() -> None:
    it = Peer()
    asking = asyncio.create_task(it.ask(hop()))
    await asyncio.sleep(0.5)
    it.freeze()
    await asyncio.sleep(10)
    it.thaw()
    with pytest.raises(Refused, match="before this hop could be added"):
        await asking
    await it.ask(hop())
    assert it.sums.of(STEP).accumulated == {1}


@pytest.mark.parametrize(
    ("trouble", "stage", "peer"),
    [
        (NonFinite("loss is nan", "loss"), TAIL, "me"),
        (NonFinite("activation is nan", "activation", 0), TAIL - 1, "before"),
    ],
)
def test_a_number_that_is_not_finite_is_done_with_and_blamed_on_its_origin(
    trouble: NonFinite, stage: int, peer: str
) -> None:
    async def main() -> None:
        it = Peer()
        it.trouble = trouble
        blame = Blame(trouble.what, stage, peer, 1)
        assert await it.ask(hop()) == NotFinite(blame)
        assert (it.sums.of(STEP).spoiled, it.sums.of(STEP).blame, it.forgotten) == ({1}, blame, [KEY])
        assert await it.ask(hop()) == NotFinite(blame)
        assert len(it.tasks) == 1

    run_virtual(main())


@virtually
async def test_a_gradient_that_is_not_finite_is_blamed_on_who_sent_it_and_a_blame_is_passed_back() -> None:
    it = Peer(1)
    it.next_answer = NotFinite(Blame("loss", TAIL, "far", 1))
    assert await it.ask(hop(stage=1)) == it.next_answer
    other = Peer(1)
    asking = asyncio.create_task(other.ask(hop(stage=1)))
    await asyncio.sleep(1.5)
    other.trouble = NonFinite("gradient is nan", "gradient", 0)
    assert await asking == NotFinite(Blame("gradient", TAIL, "next", 1))


@virtually
async def test_what_comes_from_a_newcomer_and_is_not_finite_spoils_nothing_where_others_can_compute_it() -> None:
    for known, spoils in (([], True), (["new2"], True), (["old"], False)):
        tail = Peer()
        tail.known, tail.trouble = known, NonFinite("activation is nan", "activation", 0)
        tail.handouts.take(STEP, TAIL, (1,), "new")
        middle = Peer(1)
        middle.known, middle.next_holder = known, "new"
        for it, asking in ((tail, tail.ask(hop(), "new")), (middle, middle.ask(hop(stage=1)))):
            asked = asyncio.create_task(asking)
            await asyncio.sleep(1.5)
            it.trouble = NonFinite("gradient is nan", "gradient", 0)  # the tail has failed by now
            if spoils:
                assert isinstance(await asked, NotFinite)
            else:
                with pytest.raises(Refused, match="of a newcomer is not finite"):
                    await asked
            assert it.sums.of(STEP).empty != spoils
        assert (tail.mute, middle.mute) == ([], [] if spoils else ["new"])


@virtually
async def test_a_malformed_gradient_costs_its_sender_the_connection_and_our_custodian_nothing() -> None:
    it = Peer(1)
    asking = asyncio.create_task(it.ask(hop(stage=1)))
    await asyncio.sleep(1.5)
    it.trouble = PeerFault("malformed")
    with pytest.raises(Refused, match="malformed"):
        await asking
    assert (it.dropped, it.forgotten, it.retention.nbytes) == (["next"], [KEY], 0)


@virtually
async def test_what_nobody_foresaw_fails_the_hop_and_is_noted() -> None:
    it = Peer()
    it.trouble = ValueError("a bug")
    with pytest.raises(Refused, match="failed at it: ValueError"):
        await it.ask(hop())
    assert it.admission.ailing.failures == 1
    it.trouble = None
    await it.ask(hop())
    assert it.admission.ailing.failures == 0


@virtually
async def test_only_its_custodian_can_cancel_a_hop_and_it_ends_where_others_have_it() -> None:
    it = Peer(1)
    it.next_seconds = 100.0
    asking = asyncio.create_task(it.ask(hop(stage=1)))
    await asyncio.sleep(2)
    await it.journeys._answer_cancel("another", Cancel((KEY,)))
    await asyncio.sleep(1)
    assert not asking.done() and it.hops.is_under_way(KEY)
    await it.journeys._answer_cancel("before", Cancel((KEY,)))
    with pytest.raises(HopGivenUp):
        await asking
    assert (it.forgotten[0], it.retention.nbytes, it.hops.busy) == (KEY, 0, False)


@virtually
async def test_what_is_on_the_device_ends_by_itself_and_counts_if_the_device_says_so() -> None:
    it = Peer()
    asking = asyncio.create_task(it.ask(hop()))
    await asyncio.sleep(0.5)
    it.journeys.give_up(KEY)
    assert it.journeys.give_up_all() == 0 and it.forgotten == [KEY]
    await asking
    assert it.sums.of(STEP).accumulated == {1}


@virtually
async def test_a_peer_that_is_asked_says_what_it_has_or_will_have() -> None:
    it = Peer()

    async def here(index: int) -> bool:
        located: Located = await it.journeys._answer_locate("p", Locate(STEP, index, TAIL))
        return located.here

    asking = asyncio.create_task(it.ask(hop()))
    await asyncio.sleep(0.5)
    assert [await here(1), await here(2)] == [True, False]
    it.journeys.give_up(KEY)
    assert not await here(1)
    await asking
    assert await here(1)
    with pytest.raises(Refused):
        await it.journeys._answer_locate("p", Locate(STEP, 1, TAIL - 1))


@virtually
async def test_what_another_replica_has_is_spared_unless_it_is_in_the_sum() -> None:
    it = Peer(1)
    it.next_seconds = 100.0
    asking = asyncio.create_task(it.ask(hop(stage=1)))
    await asyncio.sleep(2)
    it.journeys.spare(HopId(STEP, 2))
    it.sums.of(STEP).add(1, 0.0, "before")
    it.journeys.spare(KEY)
    await asyncio.sleep(1)
    assert not asking.done()
    it.sums.of(STEP).take_out(1, 0.0)
    it.journeys.spare(KEY)
    with pytest.raises(HopGivenUp):
        await asking


@virtually
async def test_the_end_of_a_step_ends_its_hops_and_forgets_its_sum() -> None:
    it = Peer()
    await it.ask(hop(2))
    asking = asyncio.create_task(it.ask(hop()))
    await asyncio.sleep(0.5)
    it.journeys.end_step(STEP - 1)
    await asyncio.sleep(0)
    assert it.hops.busy and not it.sums.of(STEP).empty
    it.journeys.abandon()
    with pytest.raises(HopGivenUp):
        await asking
    assert it.sums.of(STEP).empty and it.ended == [STEP - 1, RUN.steps]


async def take_out(it: Peer) -> "asyncio.Task[Any]":
    """Begins to take the hop out of the sum that it is in."""
    side_task = HopUnderWay(KEY, "", 0, admitted=0.0, subtract=True, side_task=True)
    journey = it.journeys.travel(side_task, b"tokens", IN, again=True, codec="fp32")
    task = it.journeys.start(side_task, journey)
    await asyncio.sleep(0.5)
    return task


@virtually
async def test_a_hop_that_is_being_taken_out_is_not_here_and_comes_in_again_afterwards() -> None:
    it = Peer()
    await it.ask(hop())
    task = await take_out(it)
    located = await it.journeys._answer_locate("p", Locate(STEP, 1, TAIL))
    asking = asyncio.create_task(it.ask(hop()))
    await task
    assert not located.here
    assert (it.sums.of(STEP).accumulated, it.sums.of(STEP).loss_sum, it.counted) == (set(), 0.0, set())
    await asking
    assert (it.sums.of(STEP).accumulated, it.counted, it.tasks) == ({1}, {1}, ["tail"] * 3)


@virtually
async def test_nothing_is_taken_out_of_a_frozen_sum() -> None:
    it = Peer()
    await it.ask(hop())
    task = await take_out(it)
    it.freeze()
    with pytest.raises(HopForgotten, match="was frozen before"):
        await task
    with pytest.raises(HopForgotten, match="the sum is frozen"):
        await (await take_out(it))
    assert (it.sums.of(STEP).accumulated, it.counted, len(it.tasks)) == ({1}, {1}, 2)


@virtually
async def test_a_head_trains_a_microbatch_once() -> None:
    it = Peer(0)
    first = it.journeys.train(KEY, b"tokens", again=True, horizon_s=7.0)
    assert it.journeys.train(KEY, b"tokens", again=True) is first
    await first
    assert (it.sums.of(STEP).accumulated, it.sums.of(STEP).resent) == ({1}, 1)
    it.next_answer = HopForgotten("over")
    with pytest.raises(HopForgotten):
        await it.journeys.train(HopId(STEP, 2), b"tokens", again=False)
