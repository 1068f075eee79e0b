"""A library's log lines: capped in level and number, and nowhere else."""

import logging

import pytest

from swarmd.net import logs


def test_errors_become_warnings_and_floods_are_cut(caplog: pytest.LogCaptureFixture) -> None:
    logs.route("noisy_library", "swarmd.test.library")
    noisy = logging.getLogger("noisy_library.part")
    with caplog.at_level(logging.DEBUG, "swarmd.test.library"):
        for number in range(500):
            noisy.error("line %d\nwith a trace", number)
        noisy.info("nobody wants to know")
    assert {record.levelno for record in caplog.records} == {logging.WARNING}
    assert logs.BURST_RECORDS <= len(caplog.records) <= logs.BURST_RECORDS + 20
    assert caplog.records[0].getMessage() == "noisy_library.part: line 0"
    assert {record.name for record in caplog.records} == {"swarmd.test.library"}
