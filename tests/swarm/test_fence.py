"""What nobody foresaw ends one message, hop or task, and nothing else."""

import asyncio
import itertools
import logging
from typing import Any, cast

import pytest

from swarmd.errors import DeviceLost, HopForgotten, Refused
from swarmd.sim.world.clock import run_virtual
from swarmd.sim.world.network import SimNetwork
from swarmd.swarm.fence import AGAIN_CEILING_SECONDS, PLACES_KEPT, RECENT_SECONDS, Fence, is_of_device
from swarmd.swarm.membership.table import Membership
from swarmd.swarm.wire.framing import KINDS
from swarmd.swarm.wire.links import Links
from swarmd.swarm.wire.messages.common import Request
from swarmd.swarm.wire.messages.presence import Settings
from swarmd.swarm.wire.own_card import OwnCard
from tests.swarm.cards import card
from tests.swarm.wire.nodes import Lenient, hear
from tests.swarm.wire.samples import filled

GREETING = ("Hello", "AskSettings")  # answered by `Links` itself


def node(network: SimNetwork, name: str) -> Links:
    own = OwnCard(card(name))
    membership = Membership(own)
    it = Links(network.transport(name), own, membership, lambda: Settings({"name": "toy"}, "run"))
    it.judge_by(Lenient())
    it.on_card(lambda card: hear(membership, card))
    it.transport.learn("a" if name == "b" else "b", ())
    return it


@pytest.mark.parametrize("kind", [it for it, cls in KINDS.items() if issubclass(cls, Request) and it not in GREETING])
def test_an_answerer_that_fails_costs_its_question_and_nothing_else(kind: str) -> None:
    """The asker is refused, also when it is the peer itself; the connection stays."""

    async def main() -> None:
        network, request = SimNetwork(), cast("Any", KINDS[kind])
        one, other = node(network, "a"), node(network, "b")
        troubles = (KeyError, ValueError, RuntimeError, RecursionError, AssertionError, OSError)
        for trouble in (*troubles, MemoryError, TimeoutError, HopForgotten):

            async def fail(peer: str, message: Any, trouble: type[Exception] = trouble) -> Any:
                raise trouble("on purpose")

            other.handle(request, fail)
            for asker in (one, other):
                with pytest.raises(Refused):
                    await asker.ask("b", filled(request), deadline_s=5.0)
        assert one.transport.connected() == ("b",)
        assert other.fence.count == 2 * len(troubles)
        assert "on purpose" in other.fence.warning(asyncio.get_running_loop().time())

    run_virtual(main())


def test_a_callback_that_fails_keeps_nobody_else_from_hearing() -> None:
    async def main() -> None:
        network, heard = SimNetwork(), []
        one, other = node(network, "a"), node(network, "b")

        def fail(about: object) -> None:
            raise KeyError(about)

        other.on_card(fail)
        other.on_card(lambda it: heard.append(it.peer))
        other.on_lost(fail)
        other.on_lost(heard.append)
        await one.greet("b")
        await one.transport.drop("b")
        async with asyncio.timeout(10):
            while heard != ["a", "a"]:
                await asyncio.sleep(0.1)
        assert other.fence.count == 2

    run_virtual(main())


def test_what_runs_for_ever_begins_again_after_a_pause_that_grows_and_is_short_again_after_calm() -> None:
    fence, begun = Fence(), list[float]()

    async def work() -> None:
        begun.append(asyncio.get_running_loop().time())
        if len(begun) == 13:
            return
        if len(begun) == 11:
            await asyncio.sleep(1000)
        raise KeyError(len(begun))

    run_virtual(fence.again(work))
    pauses = [round(later - earlier) for earlier, later in itertools.pairwise(begun)]
    assert pauses[:7] == [1, 2, 4, 8, 16, 32, 60]
    assert max(pauses[:10]) == AGAIN_CEILING_SECONDS
    assert pauses[10:] == [1001, 2]
    assert fence.count == 12


def test_a_lost_device_is_passed_over_alone_and_among_others() -> None:
    assert is_of_device(DeviceLost("x"))
    assert is_of_device(ExceptionGroup("", [KeyError("y"), ExceptionGroup("", [DeviceLost("x")])]))
    assert not is_of_device(ExceptionGroup("", [KeyError("y")]))

    async def lose() -> None:
        raise ExceptionGroup("", [DeviceLost("x")])

    fence = Fence()
    run_virtual(fence.again(lose))
    assert fence.count == 0


def test_the_log_is_not_flooded_and_what_is_told_apart_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    fence = Fence()

    async def main() -> None:
        for number in range(1000):
            try:
                raise KeyError(number)
            except KeyError as trouble:
                fence.note("it", trouble)
        for number in range(3 * PLACES_KEPT):
            fence.note("it", type(f"Kind{number}", (Exception,), {})())
        assert fence.warning(asyncio.get_running_loop().time() + RECENT_SECONDS + 1) == ""

    run_virtual(main())
    told = [record for record in caplog.records if record.levelno >= logging.ERROR and "KeyError" in record.message]
    assert len(told) == 10, "the 1st, 2nd, 4th, ... 512th"
    assert [bool(record.exc_info) for record in told] == [True] + [False] * 9
    assert len(fence._places) == PLACES_KEPT
