"""Chunks of a state: their size follows from the state's, and the root from all its bytes."""

import random

import pytest

from swarmd import chunks
from swarmd.chunks import CHUNK_BYTES, CHUNKS_LIMIT, chunk_count, chunk_hash, chunk_size, root_hash, state_root
from swarmd.swarm.state.manifest import chunk_hashes
from swarmd.swarm.wire.messages.fields import CHUNK_LIMIT_BYTES, STATE_LIMIT_BYTES

FULL = CHUNK_BYTES * CHUNKS_LIMIT


@pytest.mark.parametrize(
    ("nbytes", "size"),
    [(1, CHUNK_BYTES), (FULL, CHUNK_BYTES), (FULL + 1, 2 * CHUNK_BYTES), (2 * FULL + 1, 4 * CHUNK_BYTES)],
)
def test_a_larger_state_has_larger_chunks_once_there_would_be_too_many(nbytes: int, size: int) -> None:
    assert chunk_size(nbytes) == size
    assert chunk_count(nbytes, size) <= CHUNKS_LIMIT


def test_the_largest_state_fits_the_bounds_of_messages() -> None:
    assert chunk_size(STATE_LIMIT_BYTES) <= CHUNK_LIMIT_BYTES


async def test_a_root_is_the_same_from_bytes_and_from_hashes_and_another_for_other_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 100)
    state = random.Random(1).randbytes(1234)
    root = state_root(state)
    assert root == root_hash(len(state), await chunk_hashes(state))
    for other in (state[:-1], state + b"\0", state[:500] + bytes([state[500] ^ 1]) + state[501:], b""):
        assert state_root(other) != root
    assert chunk_hash(state[:100]) != chunk_hash(state[100:200])
