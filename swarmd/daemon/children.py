"""Commands that a daemon asks something of. Each has a process group of its own, which is ended as a whole: a shell
that is killed alone leaves behind what it had started. Only a daemon that is itself killed (SIGKILL) can't do that.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from swarmd import exits

_groups: set[int] = set()  # process groups that may still run


@asynccontextmanager
async def child(*command: str, stdout: int = asyncio.subprocess.DEVNULL) -> AsyncIterator[asyncio.subprocess.Process]:
    """A command that runs; at the end of the context it is ended, with everything that it started and that stayed in
    its group. Raises OSError when it can't be started.
    """
    starting = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=stdout,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
    )
    try:
        process = await asyncio.shield(starting)
    except asyncio.CancelledError:
        await _end(await starting)
        raise
    _groups.add(process.pid)
    try:
        yield process
    finally:
        await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kills the group and collects what it leaves, also when it is cancelled meanwhile: that takes a moment at most."""
    _kill(process.pid)
    _groups.discard(process.pid)
    ended = asyncio.ensure_future(process.wait())
    try:
        await asyncio.shield(ended)
    except asyncio.CancelledError:
        await ended
        raise


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # all of it has ended, or became another user's
        os.killpg(group, signal.SIGKILL)


def end_all() -> None:
    """Ends every command that still runs: for a process that ends without unwinding."""
    for group in sorted(_groups):
        _kill(group)
    _groups.clear()


exits.before_end.append(end_all)
