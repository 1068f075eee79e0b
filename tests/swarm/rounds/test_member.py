"""A member's part in a round: device and peer agree on a frozen sum, and a plan is carried out for that sum only."""

import asyncio
import dataclasses
from collections.abc import Callable, Coroutine, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from swarmd.config import ModelConfig, RunConfig
from swarmd.errors import NonFinite, Overruled, PeerFault, Refused
from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.hops.rework import Rework
from swarmd.swarm.hops.step_sum import StepSums
from swarmd.swarm.hops.under_way import HopsUnderWay, HopUnderWay
from swarmd.swarm.rounds.averaged import AveragedGradients
from swarmd.swarm.rounds.committed import CommittedGradients
from swarmd.swarm.rounds.member import Rounds, check_plan
from swarmd.swarm.rounds.repair import Repairs
from swarmd.swarm.wire.messages.common import Ballot, from_ranges, to_ranges
from swarmd.swarm.wire.messages.hop import Blame
from swarmd.swarm.wire.messages.round import AskHoldings, Contribution, Freeze, Holdings, Part, Plan, Result, Subtract
from swarmd.values import Encoded, GradientSummary, HopId
from tests.swarm.contexts import stage_context

RUN = RunConfig("toy", ModelConfig(8, 8, 4000, 1, 3, 3, 8))
STEP, STAGE, SIZE = 3, 1, 10
BLAME = Blame("loss", 2, "x", 1)
PLAN = Plan(
    step=STEP,
    attempt="first",
    members=("me",),
    parts=(Part(0, SIZE, "me"),),
    tokens=RUN.microbatches * RUN.tokens_per_microbatch,
    codec="fp32",
    ballot=Ballot(1, "c"),
    thaws=(0,),
    stage=STAGE,
)


class Peer:
    """A member that is alone in its stage's round; its device takes a second for everything."""

    def __init__(self) -> None:
        self.sums, self.hops = StepSums(), HopsUnderWay()
        self.device: list[str] = []
        self.over = False  # the step has committed, as far as the device knows
        self.trouble: Exception | None = None
        self.took_part: list[int] = []
        self.spared: list[int] = []
        self.subtracted: list[int] = []
        self.history: Any = SimpleNamespace(
            version=STEP - 1,
            ready=True,
            departures=0,
            await_version=self._at_version,
            took_part=self.took_part.append,
            chain=SimpleNamespace(members=lambda stage: ()),
        )
        compute = SimpleNamespace(
            gradient_size=SIZE,
            freeze=lambda step: self._device("freeze"),
            thaw=lambda step: self._device("thaw"),
            contribution=self._contribution,
            reduce=self._reduce,
            assemble=self._assemble,
        )
        membership = SimpleNamespace(
            own=SimpleNamespace(peer="me", incarnation=1), is_live=lambda peer: True, stage=lambda stage: []
        )
        context = stage_context(
            run=RUN,
            links=SimpleNamespace(ask=self._ask),
            membership=membership,
            history=self.history,
            scope=SimpleNamespace(handle=lambda kind, handler: None),
            sums=self.sums,
            hops=self.hops,
            compute=compute,
            stage=STAGE,
        )
        rework: Any = SimpleNamespace(subtract=self._subtract, end_step=lambda step: None, close=lambda: None)
        repairs: Any = SimpleNamespace(spare=lambda step, indices: self.spared.extend(indices))
        averaged = AveragedGradients(2)
        self.committed = CommittedGradients(context, averaged)
        self.rounds = Rounds(context, cast("Rework", rework), cast("Repairs", repairs), averaged, self.committed)

    async def _at_version(self, version: int, record: str, peer: str, seconds: float) -> None:
        assert (version, record) == (STEP - 1, "r")

    async def _device(self, task: str) -> None:
        await asyncio.sleep(1)
        if self.over:
            raise KeyError(STEP)
        self.device.append(task)

    async def _contribution(self, step: int, start: int, stop: int, *, codec: str) -> Encoded:
        await self._device("contribution")
        return Encoded(codec, (stop - start,), (b"c",))

    async def _reduce(self, contributions: Sequence[Encoded], tokens: int, *, codec: str) -> Encoded:
        await self._device("reduce")
        return Encoded(codec, (SIZE,), (b"r",))

    async def _assemble(self, step: int, parts: Sequence[Encoded]) -> GradientSummary:
        await self._device("assemble")
        if self.trouble is not None:
            raise self.trouble
        return GradientSummary("digest", 4.0)

    async def _subtract(self, step: int, indices: list[int]) -> None:
        assert not self.sums.is_frozen(step), "what is taken out must be taken out of a sum that is open"
        self.subtracted += indices

    async def _ask(self, peer: str, message: Contribution, **options: Any) -> Any:
        return await self.rounds._answer_contribution("me", message)

    async def freeze(self, *, watch: bool = False, ballot: int = 1, leader: str = "leader") -> Holdings:
        return await self.rounds._answer_freeze(leader, Freeze(STEP, "r", Ballot(ballot, "c"), STAGE, watch=watch))

    async def thaw(self, blame: Blame | None = None, spared: Sequence[int] = (), ballot: int = 1) -> Holdings:
        ask = AskHoldings(STEP, "r", Ballot(ballot, "c"), STAGE, to_ranges(spared), blame or Blame())
        return await self.rounds._answer_holdings("leader", ask)

    async def carry_out(self, plan: Plan = PLAN) -> Result:
        return await self.rounds._answer_plan("leader", plan)


def virtually(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        run_virtual(test())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@virtually
async def test_a_frozen_sum_is_described_with_what_is_on_its_way() -> None:
    it = Peer()
    it.sums.of(STEP).add(1, 2.0, "p")
    it.sums.of(STEP).spoil(2, BLAME)
    it.sums.of(STEP).resent = 5
    it.hops.begin(HopUnderWay(HopId(STEP, 4), "p", 0, admitted=0.0), asyncio.sleep(100))
    frozen = await it.freeze()
    assert (it.device, it.sums.is_frozen(STEP)) == (["freeze"], True)
    assert [from_ranges(ranges, 9) for ranges in (frozen.indices, frozen.under_way)] == [[1, 2], [4]]
    assert (frozen.loss_sum, frozen.resent, frozen.finite, frozen.blame, frozen.thaws) == (2.0, 5, False, BLAME, 0)


@virtually
async def test_device_and_peer_agree_though_leaders_freeze_and_thaw_at_once() -> None:
    it = Peer()
    await asyncio.gather(it.freeze(), it.thaw(), it.freeze(), it.thaw(), it.freeze())
    assert it.device[-1] == ("freeze" if it.sums.is_frozen(STEP) else "thaw")
    await it.thaw()
    assert (it.device[-1], it.sums.is_frozen(STEP)) == ("thaw", False)
    assert it.sums.thaws == it.device.count("thaw")


@virtually
async def test_a_sum_that_is_open_needs_no_thaw() -> None:
    it = Peer()
    await it.thaw(spared=[1, 2])
    assert (it.device, it.sums.thaws, it.spared) == ([], 0, [1, 2])


@virtually
async def test_of_a_step_that_is_skipped_who_answers_has_taken_part() -> None:
    it = Peer()
    assert (await it.thaw(BLAME)).blame == BLAME
    assert (it.took_part, it.sums.of(STEP).blame) == ([STEP], BLAME)
    it.history.version = STEP
    await it.thaw(Blame("sum", 1, "y"))
    assert (it.took_part, it.sums.of(STEP).blame) == ([STEP], BLAME)


@virtually
async def test_what_is_to_be_subtracted_is_taken_out_of_an_open_sum() -> None:
    it = Peer()
    await it.freeze()
    await it.rounds._answer_subtract("leader", Subtract(STEP, "r", to_ranges([3]), Ballot(1, "c"), STAGE))
    assert (it.subtracted, it.device) == ([3], ["freeze", "thaw"])


@virtually
async def test_a_step_that_is_over_on_the_device_is_refused() -> None:
    it = Peer()
    it.over = True
    with pytest.raises(Refused, match="is over"):
        await it.freeze()


@virtually
async def test_a_lower_ballot_is_overruled_before_anything_is_done() -> None:
    it = Peer()
    await it.freeze(ballot=2)
    for ask in (it.freeze(), it.thaw(), it.carry_out()):
        with pytest.raises(Overruled):
            await ask
    assert it.device == ["freeze"]


@virtually
async def test_a_plan_is_carried_out_and_settles_the_sum() -> None:
    it = Peer()
    await it.freeze()
    assert await it.carry_out() == Result("digest", 4.0)
    assert it.sums.of(STEP).settled and it.took_part == [STEP]
    assert it.rounds.averaged(STEP) and not it.rounds.averaged(STEP + 1)
    assert it.device == ["freeze", "contribution", "reduce", "assemble"]
    held = (await it.freeze()).parts
    assert [(part.start, part.stop) for part in held] == [(0, SIZE)]


@virtually
async def test_a_plan_for_another_sum_is_refused() -> None:
    it = Peer()
    with pytest.raises(Refused, match="begins again"):
        await it.carry_out()
    await it.freeze()
    await it.thaw()
    await it.freeze()
    with pytest.raises(Refused, match="changed since"):
        await it.carry_out()
    assert "contribution" not in it.device
    await it.carry_out(dataclasses.replace(PLAN, thaws=(1,)))


@virtually
async def test_a_round_that_begins_again_ends_the_attempt() -> None:
    it = Peer()
    await it.freeze()
    attempt = asyncio.create_task(it.carry_out())
    await asyncio.sleep(0.5)
    await it.thaw()
    with pytest.raises(Refused):
        await attempt
    assert "assemble" not in it.device and it.took_part == []


@virtually
async def test_a_sum_that_thawed_meanwhile_is_not_settled_by_a_result() -> None:
    it = Peer()
    await it.freeze()
    attempt = asyncio.create_task(it.carry_out())
    await asyncio.sleep(2.5)  # all is averaged, and being assembled
    thawing = asyncio.create_task(it.thaw())
    assert (await attempt).digest == "digest"
    assert it.sums.is_frozen(STEP) and not it.sums.of(STEP).settled  # the device thaws just now
    await thawing


@virtually
async def test_what_is_not_finite_once_assembled_is_blamed_on_the_parts_owner() -> None:
    it = Peer()
    await it.freeze()
    it.trouble = NonFinite("average is nan", "average", 0)
    assert await it.carry_out() == Result("", 0.0, Blame("average", STAGE, "me"))
    assert it.took_part == [] and not it.sums.of(STEP).settled


@virtually
async def test_no_attempt_replaces_the_gradient_of_a_record_that_is_applied() -> None:
    it = Peer()
    await it.freeze()
    attempt = asyncio.create_task(it.carry_out())
    await asyncio.sleep(0.5)
    entry = SimpleNamespace(digest="other", holders=())
    await it.committed.gather(cast("Any", SimpleNamespace(step=STEP, stages=[entry, entry])))
    with pytest.raises(Refused, match="is decided"):
        await attempt
    assert "assemble" not in it.device


@virtually
async def test_only_the_present_step_is_averaged() -> None:
    it = Peer()
    for version, ready in ((STEP, True), (STEP - 2, True), (STEP - 1, False)):
        it.history.version, it.history.ready = version, ready
        with pytest.raises(Refused, match="is not being averaged here"):
            await it.carry_out()


@pytest.mark.parametrize(
    "changes",
    [
        {"parts": ()},
        {"parts": (Part(0, SIZE - 1, "me"),)},
        {"parts": (Part(0, 5, "me"), Part(6, SIZE, "me"))},
        {"parts": (Part(0, 6, "me"), Part(5, SIZE, "me"))},
        {"parts": (Part(0, SIZE, "me"), Part(SIZE, SIZE, "me"))},
        {"tokens": 0},
        {"thaws": ()},
    ],
)
def test_a_plan_that_cannot_be_is_a_fault(changes: dict[str, Any]) -> None:
    check_plan(PLAN, SIZE)
    with pytest.raises(PeerFault):
        check_plan(dataclasses.replace(PLAN, **changes), SIZE)
