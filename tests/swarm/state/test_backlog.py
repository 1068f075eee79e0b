"""The gradients of steps that are committed while a state is on its way."""

import asyncio
import functools

import pytest

from swarmd.errors import Refused
from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.state import backlog as backlog_module
from swarmd.swarm.state.backlog import Backlog, Missed
from swarmd.swarm.wire.messages.commit import AskGradient, AskRecord, Commit, GradientPart
from swarmd.values import Encoded, PeerId
from tests.swarm.cards import card
from tests.swarm.state.holders import CHAIN, GRADIENT, Node, backlog_of, chain, holders, part_of, seconds


async def commit_many(nodes: list[Node], steps: int, pause: float = 3.0) -> None:
    for _ in range(steps):
        await asyncio.sleep(pause)
        for node in nodes:
            node.commit()


def test_many_more_steps_than_holders_keep_are_collected() -> None:
    async def main() -> None:
        _, nodes, backlog = holders()
        follow = asyncio.create_task(backlog.follow())
        await commit_many(nodes, 20)
        await asyncio.sleep(2)
        assert backlog.version == 25
        assert backlog.nbytes == 20 * 2 * GRADIENT
        held: list[tuple[int, str, tuple[Encoded, ...]]] = []
        backlog.hand_over(lambda *it: held.append(it))
        assert held[3] == (9, "g9", (part_of(9, 0), part_of(9, 1)))
        entry = await backlog.next(6)
        assert entry is not None
        assert entry.record == CHAIN[5]
        backlog.drop(24)
        assert backlog.nbytes == 2 * GRADIENT
        assert await backlog.next(26) is None
        follow.cancel()

    run_virtual(main())


def test_a_backlog_that_grows_too_large_is_given_up() -> None:
    async def main() -> None:
        joiner, nodes, _ = holders()
        backlog = backlog_of(joiner, nodes, limit=5 * 2 * GRADIENT)
        follow = asyncio.create_task(backlog.follow())
        await commit_many(nodes, 5)
        await asyncio.sleep(2)
        assert not follow.done()
        await commit_many(nodes, 1)
        with pytest.raises(Missed, match="backlog_bytes"):
            await follow
        assert backlog.nbytes == 0
        with pytest.raises(Missed):
            await backlog.next(6)

    run_virtual(main())


def test_a_gradient_that_nobody_has_any_more_is_missed() -> None:
    async def main() -> None:
        _, nodes, backlog = holders()
        await commit_many(nodes, 5, pause=0.01)
        with pytest.raises(Missed, match="step 6"):
            await backlog.follow()

    run_virtual(main())


@pytest.mark.parametrize("silent", ["a", "b"])
def test_a_silent_holder_costs_seconds(silent: str) -> None:
    async def main() -> None:
        _, nodes, backlog = holders()

        async def hang(peer: PeerId, ask: AskGradient) -> GradientPart:
            await asyncio.get_running_loop().create_future()
            raise AssertionError

        next(node for node in nodes if node.name == silent).links.handle(AskGradient, hang)
        follow = asyncio.create_task(backlog.follow())
        await commit_many(nodes, 1)
        assert await seconds(wait_for(backlog, 6)) < 2 * backlog_module.OTHER_FLOOR_SECONDS + 2
        follow.cancel()

    run_virtual(main())


async def wait_for(backlog: Backlog, step: int) -> None:
    while backlog.version < step:
        await asyncio.sleep(0.1)
    assert await backlog.next(step) is not None


def test_a_record_of_another_history_is_not_taken() -> None:
    async def main() -> None:
        _, nodes, backlog = holders()
        strange = chain(10, holders=("x",))

        async def lie(peer: PeerId, ask: AskRecord) -> Commit:
            return Commit(strange[ask.step - 1].raw)

        nodes[1].links.handle(AskRecord, lie)  # the one that `newest` names
        follow = asyncio.create_task(backlog.follow())
        await commit_many(nodes, 2)
        await asyncio.sleep(3)
        assert backlog.version == 7, "the other one's records are used"
        entry = await backlog.next(6)
        assert entry is not None
        assert entry.record == CHAIN[5]
        follow.cancel()

    run_virtual(main())


def test_holders_that_cannot_be_reached_are_tried_again() -> None:
    async def main() -> None:
        _, nodes, backlog = holders()
        tries = 0

        async def flaky(peer: PeerId, ask: AskGradient, name: PeerId) -> GradientPart:
            nonlocal tries
            tries += 1
            if tries < 5:
                nodes[0].network.cut("joiner", name)
                await asyncio.sleep(1)
            return GradientPart(1, part_of(ask.step, ask.part))

        for node in nodes:
            node.links.handle(AskGradient, functools.partial(flaky, name=node.name))
        follow = asyncio.create_task(backlog.follow())
        await commit_many(nodes, 1)
        await wait_for(backlog, 6)
        assert tries >= 5
        follow.cancel()

    run_virtual(main())


@pytest.mark.parametrize("dropped", [True, False])
def test_a_dead_holder_is_waited_for_until_it_is_dropped(dropped: bool) -> None:
    """The other one has only newer gradients: it can give a newer state instead."""

    async def main() -> int:
        joiner, nodes, backlog = holders()
        passes = 0

        async def refuse(peer: PeerId, ask: AskGradient) -> GradientPart:
            nonlocal passes
            passes += 1
            raise Refused("it is not here any more")

        nodes[0].links.handle(AskGradient, refuse)
        await commit_many(nodes, 1, pause=0.01)
        for node in nodes[1:]:
            joiner.network.kill(node.name, power=False)
            if not dropped:
                joiner.membership.hear(card(node.name, version=6), 0.0)
        with pytest.raises(Missed, match="step 6"):
            await backlog.follow()
        return passes

    assert run_virtual(main()) == (1 if dropped else backlog_module.PASSES)


def test_what_was_told_at_once_is_followed_at_once() -> None:
    async def main() -> None:
        _, nodes, backlog = holders()
        follow = asyncio.create_task(backlog.follow())
        await asyncio.sleep(0.5)
        nodes[0].commit()
        backlog.hear(CHAIN[5], "a")
        await asyncio.sleep(0.1)
        assert backlog.version == 6
        follow.cancel()

    run_virtual(main())
