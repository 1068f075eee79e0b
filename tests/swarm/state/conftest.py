"""Small chunks for the tests of a state's transfer."""

import pytest

from swarmd import chunks
from tests.swarm.state.holders import CHUNK


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", CHUNK)
