"""A daemon that goes to another stage never holds two: the old one is gone before the new one is built."""

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_switch_of_stages_takes_the_memory_of_one() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.daemon.switching", "704"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["bytes"] > 200e6
    assert not found["beside"], "the old engine lived while the new one was built"
    assert found["one"] > 0.9 * found["bytes"], "the measurement sees a stage"
    assert found["both"] < found["one"] + 0.2 * found["bytes"], found
