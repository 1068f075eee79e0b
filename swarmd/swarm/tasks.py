"""Background tasks and their owners: every task ends with its owner at the latest.

`Tasks` belongs to a peer, or to a part of one such as the stage that it serves. Beside it are the usual ways to wait:
for the first of two coroutines, with another one alongside, for a task that outlives those who wait for it.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, NoReturn, TypeVar

from swarmd.errors import Refused
from swarmd.swarm.fence import Fence

A = TypeVar("A")
B = TypeVar("B")
Work = Coroutine[Any, Any, A]


class Tasks:
    """The background tasks of one owner. They run at most as long as the owner's `running` block, those of a child
    until that is cancelled. A failure is the fence's affair, and ends its task only.
    """

    def __init__(self, fence: Fence, parent: "Tasks | None" = None) -> None:
        self._fence, self._parent = fence, parent
        self._group: asyncio.TaskGroup | None = None  # while the block runs; a child uses its parent's
        self._running: dict[asyncio.Task[None], None] = {}
        self._cancelled = False

    def child(self) -> "Tasks":
        """Tasks of their own that end with these at the latest."""
        return Tasks(self._fence, self)

    def start(self, work: Work[None]) -> "asyncio.Task[None] | None":
        """Runs a coroutine in the background. None, and the coroutine is closed, if the owner hasn't begun or is at
        its end.
        """
        task = None
        if self._parent is not None and not self._cancelled:
            task = self._parent.start(work)
        elif self._group is not None:
            task = self._group.create_task(self._fence.once(work))
        if task is None:
            work.close()
            return None
        self._enter(task, work)
        return task

    def _enter(self, task: "asyncio.Task[None]", work: Work[None]) -> None:
        self._running[task] = None
        task.add_done_callback(self._running.pop)
        task.add_done_callback(lambda _: work.close())  # it may not have begun

    def keep(self, begin: Callable[[], Work[None]]) -> None:
        """Runs a coroutine in the background, and begins it again when it fails."""
        self.start(self._fence.again(begin))

    def cancel(self) -> None:
        """Cancels what runs, in the order in which it was started; nothing is started any more."""
        self._cancelled, self._group = True, None
        for task in list(self._running):
            task.cancel()

    async def ended(self) -> None:
        """Waits until nothing runs."""
        while self._running:
            await asyncio.gather(*self._running, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def running(self, watch: Work[NoReturn]) -> AsyncIterator[None]:
        """Lets tasks be started while the block runs; its end cancels them and waits for them. If `watch` raises, the
        block is cancelled, and raises that in a group.
        """
        async with asyncio.TaskGroup() as self._group:
            self._enter(self._group.create_task(watch), watch)
            try:
                yield
            finally:
                self.cancel()


@contextlib.asynccontextmanager
async def alongside(work: Work[A]) -> "AsyncIterator[asyncio.Task[A]]":
    """Runs a coroutine as long as the block: it is cancelled at the block's end, if it runs then, and awaited."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def first_of(one: Work[A], other: Work[B]) -> A | B:
    """Runs two coroutines until either ends; returns its result, or raises its exception. Of two that end in the same
    turn of the event loop the first argument counts. The other one is cancelled and awaited.
    """
    first, second = asyncio.create_task(one), asyncio.create_task(other)
    both: set[asyncio.Task[Any]] = {first, second}
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        return first.result() if first.done() else second.result()
    finally:
        first.cancel()
        second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)


def start_shared(work: Work[A], name: str) -> "asyncio.Task[A]":
    """Starts a task for which several may wait, or nobody: its exception counts as retrieved."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_retrieve)
    return task


def _retrieve(task: "asyncio.Task[Any]") -> None:
    if not task.cancelled():
        task.exception()


async def to_the_end(task: "asyncio.Task[A]", under_way: "set[asyncio.Task[Any]]") -> A:
    """Waits for a task that runs to its end even if this caller is cancelled; meanwhile it is `under_way`."""
    under_way.add(task)
    task.add_done_callback(under_way.discard)
    return await asyncio.shield(task)


async def joined(task: "asyncio.Task[A]", refusal: Refused) -> A:
    """Waits for a task that goes on if this caller is cancelled. Raises the refusal when it is the task that was
    cancelled.
    """
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        caller = asyncio.current_task()
        if task.cancelled() and not (caller is not None and caller.cancelling()):  # else both end at once
            raise refusal from None
        raise
