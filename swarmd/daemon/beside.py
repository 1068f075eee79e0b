"""Work that blocks, in a thread of its own for which no end of the process waits."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

STOP_SECONDS = 1.0  # for a call that isn't wanted any more to clean up after itself


async def run_beside(call: Callable[[Callable[[], bool]], T]) -> T:
    """Runs a call in a thread; gives its result, or raises its exception. The call gets a function that it is to ask
    now and then: it says whether to stop, because this was cancelled.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()
    stop = threading.Event()

    def work() -> None:
        result: Any = None
        failure: Exception | None = None
        try:
            result = call(stop.is_set)
        except Exception as error:  # noqa: BLE001 - becomes the exception of the coroutine that waits
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(_deliver, done, result, failure)

    threading.Thread(target=work, name="beside", daemon=True).start()
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait({done}, timeout=STOP_SECONDS)
        if done.done() and not done.cancelled():
            done.exception()  # nobody wants it any more
        raise


def _deliver(future: "asyncio.Future[Any]", result: Any, failure: Exception | None) -> None:
    if future.done():
        return
    if failure is not None:
        future.set_exception(failure)
    else:
        future.set_result(result)
