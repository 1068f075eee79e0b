"""Background tasks end with their owner, and waiting for one of several leaves nothing behind."""

import asyncio
from typing import NoReturn

import pytest

from swarmd.errors import DeviceLost, Refused
from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.fence import Fence
from swarmd.swarm.tasks import Tasks, alongside, first_of, joined, start_shared


async def forever(ended: list[str], name: str) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        ended.append(name)


async def fail(trouble: BaseException) -> NoReturn:
    raise trouble


async def after(seconds: float, result: str) -> str:
    await asyncio.sleep(seconds)
    return result


async def nothing() -> NoReturn:
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


def others() -> int:
    return len(asyncio.all_tasks()) - 1


def test_tasks_end_with_their_owner_in_the_order_of_their_start() -> None:
    async def main() -> None:
        tasks, ended = Tasks(Fence()), list[str]()
        assert tasks.start(forever(ended, "too early")) is None
        async with tasks.running(nothing()):
            for name in "abc":
                tasks.start(forever(ended, name))
            await asyncio.sleep(0)
            tasks.start(forever(ended, "never began"))
            assert not ended
        assert ended == ["a", "b", "c"]
        assert tasks.start(forever(ended, "too late")) is None
        assert others() == 0

    run_virtual(main())


def test_a_child_ends_alone_and_with_its_parent_at_the_latest() -> None:
    async def main() -> None:
        tasks, ended = Tasks(Fence()), list[str]()
        async with tasks.running(nothing()):
            tasks.start(forever(ended, "parent"))
            one, other = tasks.child(), tasks.child()
            one.start(forever(ended, "one"))
            other.start(forever(ended, "other"))
            await asyncio.sleep(0)
            one.cancel()
            assert one.start(forever(ended, "too late")) is None
            await one.ended()
            assert ended == ["one"]
        assert ended == ["one", "parent", "other"]
        assert other.start(forever(ended, "after its parent")) is None

    run_virtual(main())


def test_a_failure_ends_its_task_only_and_what_is_kept_begins_again() -> None:
    async def main() -> None:
        fence, begun = Fence(), list[float]()
        tasks = Tasks(fence)

        async def work() -> None:
            begun.append(asyncio.get_running_loop().time())
            raise KeyError("on purpose")

        async with tasks.running(nothing()):
            tasks.start(fail(ValueError("on purpose")))
            tasks.start(fail(DeviceLost("the owner watches for that")))
            tasks.keep(work)
            await asyncio.sleep(3.5)
        assert len(begun) == 3
        assert fence.count == 4

    run_virtual(main())


def test_a_failure_that_is_watched_for_ends_the_owner() -> None:
    async def main() -> None:
        tasks, ended = Tasks(Fence()), list[str]()
        with pytest.raises(ExceptionGroup) as raised:
            async with tasks.running(fail(DeviceLost("gone"))):
                tasks.start(forever(ended, "a"))
                await asyncio.Event().wait()
        assert raised.group_contains(DeviceLost)
        assert ended == ["a"]

    run_virtual(main())


def test_the_first_of_two_counts_and_the_other_is_ended() -> None:
    async def main() -> None:
        ended = list[str]()
        assert await first_of(after(1, "one"), forever(ended, "other")) == "one"
        assert await first_of(forever(ended, "one"), after(1, "other")) == "other"
        assert await first_of(after(1, "one"), after(1, "other")) == "one"
        assert ended == ["other", "one"]
        with pytest.raises(KeyError):
            await first_of(forever(ended, "one"), fail(KeyError("on purpose")))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await first_of(forever(ended, "one"), forever(ended, "other"))
        assert ended[2:] in (["one", "one", "other"], ["one", "other", "one"])
        assert others() == 0

    run_virtual(main())


def test_what_runs_alongside_ends_with_the_block_also_when_that_fails() -> None:
    async def main() -> None:
        ended = list[str]()
        async with alongside(after(1, "result")) as task:
            await asyncio.sleep(2)
        assert task.result() == "result"
        with pytest.raises(KeyError):
            async with alongside(forever(ended, "it")):
                await asyncio.sleep(1)
                raise KeyError("on purpose")
        assert ended == ["it"]

    run_virtual(main())


def test_a_shared_task_outlives_those_who_wait_and_nobody_need_hear_of_its_failure() -> None:
    async def main() -> None:
        unheard = list[object]()
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: unheard.append(context))
        start_shared(fail(KeyError("on purpose")), "fails unheard")
        task = start_shared(after(2, "result"), "shared")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await joined(task, Refused("it is over"))
        assert await joined(task, Refused("it is over")) == "result"
        assert not unheard

    run_virtual(main())


@pytest.mark.parametrize("caller_too", [False, True])
def test_a_shared_task_that_is_cancelled_refuses_those_who_wait_unless_they_end_with_it(caller_too: bool) -> None:
    async def main() -> None:
        task = start_shared(after(2, "result"), "shared")
        waiting = asyncio.create_task(joined(task, Refused("it is over")))
        await asyncio.sleep(1)
        task.cancel()
        if caller_too:
            waiting.cancel()
        with pytest.raises(asyncio.CancelledError if caller_too else Refused):
            await waiting

    run_virtual(main())
