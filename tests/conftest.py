"""For every test: one CPU thread per process, since daemons share few cores, no home outside the test, no width."""

import os
import signal
from pathlib import Path

import hypothesis
import pytest

# Before anything imports torch: its thread pools are sized once. Subprocesses inherit it.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"

# Under nohup it is ignored, and daemons rightly go on ignoring it; the tests ask what they do elsewhere.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# A busy machine makes an example slow; the time limit on each test stays.
hypothesis.settings.register_profile(
    "swarmd",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("swarmd")


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon or a swarmctl that is told no home must not find the developer's."""
    monkeypatch.setenv("SWARMD_HOME", str(Path(tmp_path_factory.getbasetemp()) / "nobody-home"))


@pytest.fixture(autouse=True)
def _no_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is shown in a pipe has no width, whatever the terminal of those who run the tests has."""
    monkeypatch.delenv("COLUMNS", raising=False)
