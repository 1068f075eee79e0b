"""What is computed once more: a message that was evicted, and an index that goes out of the sum."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from types import SimpleNamespace
from typing import Any, cast

import pytest

from swarmd.config import ModelConfig, RunConfig
from swarmd.errors import OutOfRange, PeerUnreachable, Refused
from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.hops.journey import Journeys
from swarmd.swarm.hops.retention import Retention
from swarmd.swarm.hops.rework import SUBTRACTED_AT_ONCE, Rework
from swarmd.swarm.hops.step_sum import StepSums
from swarmd.swarm.hops.under_way import HopsUnderWay, HopUnderWay
from swarmd.swarm.membership.table import Membership
from swarmd.swarm.ports import Data
from swarmd.swarm.wire.messages.hop import AskHop, Hop
from swarmd.swarm.wire.own_card import OwnCard
from swarmd.values import Encoded, HopId
from tests.swarm.cards import card
from tests.swarm.contexts import stage_context

RUN = RunConfig("toy", ModelConfig(8, 8, 4000, 1, 3, 3, 8))
STEP = 3
IN, OUT = Encoded("fp16", (1,), (b"in",)), Encoded("fp16", (1,), (b"out",))


def key(index: int) -> HopId:
    return HopId(STEP, index)


def message(index: int, stage: int, activation: Encoded) -> Hop:
    return Hop(STEP, index, "r", True, False, "fp32", b"tokens", activation, 0.0, stage)


class Peer:
    """A peer of a stage, with `b` and `c` at the stage before, and a device that takes a second for everything."""

    def __init__(self, stage: int = 1) -> None:
        self.sums, self.hops, self.retention = StepSums(), HopsUnderWay(), Retention(1 << 20)
        self.history = SimpleNamespace(version=STEP - 1, ready=True)
        self.answers: dict[str, Any] = {"b": None, "c": None}
        self.asked: list[str] = []
        self.computed: list[HopId] = []
        self.forgotten: list[HopId] = []
        self.frozen = False
        members = Membership(OwnCard(card("a", stage=stage)))
        for peer in ("b", "c"):
            members.hear(card(peer, stage=stage - 1), 0.0)
        custodian = SimpleNamespace(
            retention=self.retention,
            codec=lambda own: "fp16",
            message=lambda key, tokens, out, again: message(key.index, stage + 1, out),
        )
        journeys: Any = SimpleNamespace(custodian=custodian, hops=self.hops, start=self.hops.begin, travel=self._travel)
        data = SimpleNamespace(microbatch=self._microbatch)
        context = stage_context(
            run=RUN,
            membership=members,
            history=self.history,
            links=SimpleNamespace(ask=self._ask),
            scope=SimpleNamespace(handle=lambda kind, handler: None),
            sums=self.sums,
            hops=self.hops,
            stage=stage,
            compute=SimpleNamespace(codecs=("fp16",), forward=self._forward, forget=self.forgotten.append),
        )
        self.rework = Rework(context, cast("Journeys", journeys), cast("Data", data) if stage == 0 else None)

    async def _microbatch(self, step: int, index: int) -> bytes:
        return f"tokens {step} {index}".encode()

    async def _ask(self, peer: str, question: AskHop, **options: Any) -> Hop:
        self.asked.append(peer)
        answer = self.answers[peer]
        if isinstance(answer, Exception):
            raise answer
        return cast("Hop", answer or message(question.index, 1, IN))

    async def _forward(self, hop: HopId, tokens: bytes, activation: Encoded | None, *, codec: str) -> Encoded:
        await asyncio.sleep(1)
        self.computed.append(hop)
        return OUT

    async def _travel(
        self, it: HopUnderWay, tokens: bytes, activation: Encoded | None, *, again: bool, codec: str
    ) -> None:
        assert it.subtract and it.side_task and again
        await asyncio.sleep(1)
        if self.frozen:
            raise Refused("the sum is frozen")
        self.sums.of(STEP).take_out(it.hop.index, 1.0)


def virtually(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        run_virtual(test())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@virtually
async def test_a_retained_message_is_answered_as_it_is() -> None:
    it = Peer()
    retained = it.retention.keep(key(1), message(1, 2, OUT))
    assert await it.rework.message(key(1)) is retained.hop
    assert (it.computed, it.asked) == ([], [])


@virtually
async def test_an_evicted_one_is_computed_once_for_all_who_ask() -> None:
    it = Peer()
    first, second = await asyncio.gather(it.rework.message(key(1)), it.rework.message(key(1)))
    assert first == second == message(1, 2, OUT)
    assert (it.computed, it.forgotten) == ([key(1)], [key(1)])
    await it.rework.message(key(1))
    assert it.computed == [key(1)] * 2  # nothing of it was kept


@virtually
async def test_what_is_under_way_with_a_hop_comes_first() -> None:
    it = Peer()
    end = asyncio.Event()
    it.hops.begin(HopUnderWay(key(1), "a", 0, admitted=0.0), end.wait())
    asking = asyncio.create_task(it.rework.message(key(1)))
    await asyncio.sleep(10)
    assert it.computed == []
    end.set()
    await asking
    assert it.computed == [key(1)]


@virtually
async def test_who_sent_an_index_is_asked_for_it_first() -> None:
    it = Peer()
    it.sums.of(STEP).add(1, 1.0, "c")
    assert await it.rework.input(key(1)) == (b"tokens", IN)
    assert await it.rework.input(key(2)) == (b"tokens", IN)
    assert it.asked == ["c", "b"]


@virtually
async def test_another_is_asked_where_one_has_it_not_or_answers_something_else() -> None:
    it = Peer()
    for answer in (PeerUnreachable("gone"), Refused("no"), message(9, 1, IN), message(1, 2, IN)):
        it.answers["b"], it.asked = answer, []
        assert await it.rework.input(key(1)) == (b"tokens", IN)
        assert it.asked == ["b", "c"]
    it.answers = dict.fromkeys("bc", Refused("no"))
    with pytest.raises(Refused, match="nobody has the input"):
        await it.rework.input(key(1))


@virtually
async def test_a_head_has_its_input_from_the_data() -> None:
    assert await Peer(0).rework.input(key(1)) == (f"tokens {STEP} 1".encode(), None)


@virtually
async def test_only_hops_of_the_present_step_that_are_passed_on_are_answered() -> None:
    it = Peer()
    assert await it.rework._answer_hop_question("d", AskHop(STEP, 1)) == message(1, 2, OUT)
    with pytest.raises(OutOfRange):
        await it.rework._answer_hop_question("d", AskHop(STEP, RUN.microbatches))
    with pytest.raises(Refused, match="isn't passed on here now"):
        await it.rework._answer_hop_question("d", AskHop(STEP + 1, 1))
    with pytest.raises(Refused, match="isn't passed on here now"):
        await Peer(RUN.model.stages - 1).rework._answer_hop_question("d", AskHop(STEP, 1))
    it.history.ready = False
    with pytest.raises(Refused, match="isn't passed on here now"):
        await it.rework._answer_hop_question("d", AskHop(STEP, 1))


@virtually
async def test_indices_go_out_of_the_sum_a_few_at_once() -> None:
    it, loop = Peer(), asyncio.get_running_loop()
    count = 2 * SUBTRACTED_AT_ONCE
    for index in range(count):
        it.sums.of(STEP).add(index, 1.0, "b")
    began = loop.time()
    await it.rework.subtract(STEP, [*range(1, count), count + 5])  # the last one isn't there
    assert (it.sums.of(STEP).accumulated, it.sums.of(STEP).subtracted) == ({0}, count - 1)
    assert loop.time() - began == pytest.approx(2.0)


@virtually
async def test_an_index_that_stays_is_refused() -> None:
    it = Peer()
    it.frozen = True
    it.sums.of(STEP).add(1, 1.0, "b")
    with pytest.raises(Refused, match="1 indices stay in the sum: the sum is frozen"):
        await it.rework.subtract(STEP, [1])


@virtually
async def test_who_asks_twice_for_a_subtraction_gets_one() -> None:
    it = Peer()
    it.sums.of(STEP).add(1, 1.0, "b")
    await asyncio.gather(it.rework.subtract(STEP, [1]), it.rework.subtract(STEP, [1]))
    assert it.sums.of(STEP).subtracted == 1


@pytest.mark.parametrize("end", [lambda it: it.rework.end_step(STEP), lambda it: it.rework.close()])
def test_what_is_computed_for_a_step_ends_with_it(end: Callable[[Peer], Awaitable[None]]) -> None:
    async def main() -> None:
        it = Peer()
        asking = asyncio.create_task(it.rework.message(key(1)))
        await asyncio.sleep(0.5)
        it.rework.end_step(STEP - 1)
        await asyncio.sleep(0)
        assert not asking.done()
        end(it)
        with pytest.raises(Refused, match="is over"):
            await asking

    run_virtual(main())
