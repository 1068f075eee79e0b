"""For every test in virtual time: no task may fail unheard."""

import gc
import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _nothing_fails_unheard(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """asyncio logs an exception that nobody retrieved when the task is collected, and what the loop swallowed."""
    yield
    gc.collect()
    records = [record for when in ("call", "teardown") for record in caplog.get_records(when)]
    unheard = [
        record.getMessage() for record in records if record.name == "asyncio" and record.levelno >= logging.ERROR
    ]
    assert not unheard, unheard[:3]
