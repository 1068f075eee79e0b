"""For tests of what runs beside: no task may fail unheard, and none may be left behind.

A conftest imports both fixtures.
"""

import gc
import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def only_what_is_ours() -> None:
    """Counts nothing that tests of other folders left in this process; and looks no more through what is loaded by now
    after each test, which would take longer than most tests. What is frozen stays so: to look through it again for each
    module would take a second.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def nothing_fails_unheard(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """asyncio logs an exception that nobody retrieved and a task that never ended when they are collected, and what the
    loop swallowed.
    """
    yield
    gc.collect()
    records = [record for when in ("call", "teardown") for record in caplog.get_records(when)]
    unheard = [
        record.getMessage() for record in records if record.name == "asyncio" and record.levelno >= logging.ERROR
    ]
    assert not unheard, unheard[:3]
