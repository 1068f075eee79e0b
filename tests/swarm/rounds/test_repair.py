"""What a peer does about indices that a round lacks: it sends them again, trains them, or says that it doesn't."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from swarmd.config import LimitsConfig, ModelConfig, RunConfig
from swarmd.errors import OutOfRange, Refused
from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.hops.journey import Journeys
from swarmd.swarm.hops.rework import Rework
from swarmd.swarm.hops.step_sum import StepSums
from swarmd.swarm.rounds.repair import Repairs
from swarmd.swarm.wire.messages.common import from_ranges, to_ranges
from swarmd.swarm.wire.messages.hop import Blame
from swarmd.swarm.wire.messages.round import Resend, Resent
from swarmd.values import HopId
from tests.swarm.contexts import stage_context

RUN = RunConfig("toy", ModelConfig(8, 8, 4000, 1, 3, 3, 8))
STEP = 3
BLAME = Blame("loss", 2, "x", 1)


class Peer:
    """A peer of a stage, what it has retained and has under way, and what it did."""

    def __init__(self, stage: int = 1, *, retained: Iterable[int] = (), under_way: Iterable[int] = ()) -> None:
        self.stage, self.retained, self.under_way = stage, set(retained), set(under_way)
        self.elsewhere: set[int] = set()  # located at a member
        self.brought: list[int] = []
        self.anew: list[int] = []
        self.trained: list[int] = []
        self.spared: list[int] = []
        self.refused: set[int] = set()  # of these nobody gives the input
        self.at_work = 0
        self.most_at_work = 0
        self.sums = StepSums()
        self.history = SimpleNamespace(version=STEP - 1)
        self.admission = SimpleNamespace(retiring=False)
        custodian = SimpleNamespace(bring_to=self._bring_to, bring_anew=self._bring_anew, locate=self._locate)
        hops = SimpleNamespace(is_under_way=lambda key: key.index in self.under_way, undisturbed=self._undisturbed)
        journeys: Any = SimpleNamespace(
            admission=self.admission,
            custodian=custodian,
            hops=hops,
            train=self._train,
            spare=lambda key: self.spared.append(key.index),
        )
        rework: Any = SimpleNamespace(message=self._message, input=self._input)
        context = stage_context(
            run=RUN,
            limits=LimitsConfig(in_flight_hops=2),
            history=self.history,
            sums=self.sums,
            stage=stage,
            tasks=SimpleNamespace(start=asyncio.ensure_future),
        )
        self.repairs = Repairs(context, cast("Journeys", journeys), cast("Rework", rework))

    def _bring_to(self, key: HopId, members: tuple[str, ...]) -> bool:
        if key.index in self.retained:
            self.brought.append(key.index)
        return key.index in self.retained

    async def _message(self, key: HopId) -> HopId:
        if key.index in self.refused:
            raise Refused("nobody has the input")
        self.at_work += 1
        self.most_at_work = max(self.most_at_work, self.at_work)
        await asyncio.sleep(1)
        self.at_work -= 1
        return key

    async def _bring_anew(self, key: HopId, message: HopId, members: tuple[str, ...]) -> None:
        assert message == key
        self.anew.append(key.index)

    async def _locate(self, key: HopId, stage: int, members: tuple[str, ...]) -> str | None:
        return "other" if key.index in self.elsewhere else None

    async def _input(self, key: HopId) -> tuple[bytes, None]:
        return b"tokens", None

    async def _undisturbed(self, key: HopId) -> None:
        pass

    def _train(self, key: HopId, tokens: bytes, *, again: bool) -> "asyncio.Future[None]":
        assert again and tokens == b"tokens"
        self.trained.append(key.index)
        done = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    async def bring(self, *indices: int, stage: int | None = None, anew: bool = False) -> list[int]:
        """The indices that it says are on their way."""
        stage = self.stage + 1 if stage is None else stage
        resent = await self.repairs.bring("l", Resend(STEP, "r", to_ranges(indices), stage, ("m",), anew=anew))
        assert not resent.blame
        return from_ranges(resent.indices, RUN.microbatches)


def virtually(test: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await test()

    run_virtual(main())


def test_what_is_retained_goes_to_a_member_at_once() -> None:
    async def test() -> None:
        it = Peer(retained={1, 2}, under_way={3})
        assert await it.bring(1, 3, 4) == [1, 3]
        assert it.brought == [1]
        await asyncio.sleep(10)
        assert it.anew == []

    virtually(test)


def test_what_is_in_the_sum_was_passed_on_and_is_computed_once_more() -> None:
    async def test() -> None:
        it = Peer()
        it.sums.of(STEP).add(4, 1.0, "source")
        assert await it.bring(4, 5) == [4]
        assert await it.bring(4) == [4]  # it is at it
        await asyncio.sleep(10)
        assert it.anew == [4]

    virtually(test)


def test_a_share_of_what_nobody_has_is_computed_anew_a_few_at_once() -> None:
    async def test() -> None:
        it = Peer()
        it.refused = {7}
        assert await it.bring(5, 6, 7, 8, 9, anew=True) == [5, 6, 7, 8, 9]
        await asyncio.sleep(10)
        assert (sorted(it.anew), it.most_at_work) == ([5, 6, 8, 9], 2)
        assert await it.bring(7) == []  # what failed isn't under way any more

    virtually(test)


def test_a_head_trains_what_no_head_has() -> None:
    async def test() -> None:
        it = Peer(0, under_way={3})
        it.sums.of(STEP).add(4, 1.0, "")
        it.elsewhere = {6}
        assert await it.bring(3, 4, 5, 6, stage=0) == [3, 4, 5, 6]
        await asyncio.sleep(10)
        assert it.trained == [5]

    virtually(test)


def test_a_head_that_leaves_begins_nothing() -> None:
    async def test() -> None:
        it = Peer(0, retained={1})
        it.admission.retiring = True
        assert await it.bring(3, stage=0) == []
        assert await it.bring(1) == [1]  # for the next stage it still does what it can

    virtually(test)


def test_a_head_trains_nothing_of_a_step_that_is_over() -> None:
    async def test() -> None:
        it = Peer(0)
        assert await it.bring(5, stage=0) == [5]
        it.history.version = STEP
        await asyncio.sleep(10)
        assert it.trained == []

    virtually(test)


def test_of_a_step_that_is_skipped_nothing_is_sent_but_the_blame() -> None:
    async def test() -> None:
        it = Peer(retained={1})
        it.sums.of(STEP).blame = BLAME
        assert await it.repairs.bring("l", Resend(STEP, "r", to_ranges([1]), 2, ("m",))) == Resent((), BLAME)
        assert it.brought == []

    virtually(test)


@pytest.mark.parametrize(("own", "asked"), [(1, 0), (1, 1), (1, 3), (0, 2), (2, 2)])
def test_another_stage_is_not_served(own: int, asked: int) -> None:
    async def test() -> None:
        with pytest.raises(Refused, match="is of stage"):
            await Peer(own).bring(1, stage=asked)

    virtually(test)


def test_indices_beyond_the_batch_are_refused() -> None:
    async def test() -> None:
        with pytest.raises(OutOfRange):
            await Peer().bring(RUN.microbatches)

    virtually(test)


def test_what_others_have_is_spared_but_at_a_head_only_what_was_begun_for_a_round() -> None:
    async def test() -> None:
        it = Peer(1)
        it.repairs.spare(STEP, [1, 2])
        assert it.spared == [1, 2]
        head = Peer(0)
        await head.bring(2, stage=0)
        head.repairs.spare(STEP, [1, 2])
        assert head.spared == [2]

    virtually(test)
