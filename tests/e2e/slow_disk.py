"""`python -m tests.e2e.slow_disk FILE start ...` is swarmd on a disk that takes its time.

FILE gets a line for each sync: what was synced, and where in swarmd it was asked for if an event loop had to wait.
"""

import asyncio
import functools
import json
import os
import sys
import time
import traceback

from swarmd.__main__ import main

SYNC_SECONDS = 0.3
sync = os.fsync


def slow_sync(record: str, descriptor: int) -> None:
    waiting: list[str] = []
    try:
        asyncio.get_running_loop()
        waiting = [f"{it.filename}:{it.lineno}" for it in traceback.extract_stack() if "/swarmd/" in it.filename]
    except RuntimeError:
        pass  # a thread beside it
    with open(record, "a", encoding="utf-8") as file:
        file.write(json.dumps([os.readlink(f"/proc/self/fd/{descriptor}"), waiting]) + "\n")
    time.sleep(SYNC_SECONDS)
    sync(descriptor)


if __name__ == "__main__":
    os.fsync = functools.partial(slow_sync, sys.argv.pop(1))
    main()
