"""For every test in virtual time: nothing fails unheard."""

import pytest

from swarmd import chunks
from tests.unheard import nothing_fails_unheard, only_what_is_ours

__all__ = ["nothing_fails_unheard", "only_what_is_ours"]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy's state is many chunks."""
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 2048)
