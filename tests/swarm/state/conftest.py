"""Small chunks for the tests of a state's transfer."""

import pytest

from swarmd.swarm.state import manifest as statesync
from tests.swarm.state.holders import CHUNK


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statesync, "CHUNK_BYTES", CHUNK)
