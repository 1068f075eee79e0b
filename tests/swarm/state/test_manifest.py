"""Manifests of a stage's state: the ones that make sense, their names, and the spans of their chunks."""

from dataclasses import replace
from typing import Any

import pytest

from swarmd.chunks import chunk_hash
from swarmd.errors import PeerFault
from swarmd.swarm.state.manifest import (
    ELEMENT_LIMIT_BYTES,
    SLACK_BYTES,
    Manifest,
    chunk_hashes,
    read_manifest,
)
from swarmd.swarm.wire.messages.fields import CHUNK_LIMIT_BYTES
from swarmd.swarm.wire.messages.state import Snapshot
from tests.swarm.state.holders import CHAIN, CHUNK, RUN

ELEMENTS = 100
SNAPSHOT = Snapshot(2, CHAIN[1].raw, 2500, 1000, ("a", "b", "c"))


def read(**changes: Any) -> Manifest:
    return read_manifest(RUN, replace(SNAPSHOT, **changes), ELEMENTS)


def test_chunks_cover_the_state_and_the_last_one_is_shorter() -> None:
    manifest = read()
    assert manifest.record == CHAIN[1]
    assert [manifest.span(number) for number in range(3)] == [slice(0, 1000), slice(1000, 2000), slice(2000, 2500)]


def test_a_state_of_version_0_has_no_record() -> None:
    assert read(version=0, record=b"").record is None


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 3},
        {
            "nbytes": ELEMENT_LIMIT_BYTES * ELEMENTS + SLACK_BYTES + 1,
            "chunk_bytes": CHUNK_LIMIT_BYTES,
            "hashes": ("a",) * 2,
        },
        {"hashes": ("a", "b")},
        {"hashes": ("a", "b", "c", "d")},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_a_snapshot_that_makes_no_sense_is_a_fault(changes: dict[str, Any]) -> None:
    with pytest.raises(PeerFault):
        read(**changes)


def test_manifests_have_one_name_if_they_serve_the_same_chunks_of_one_history() -> None:
    assert read().name == read().name
    other = replace(CHAIN[1], parent="another")
    assert read(record=other.raw).name != read().name
    assert read(hashes=("a", "b", "d")).name != read().name


async def test_each_chunk_is_named_by_its_content() -> None:
    state = bytes(range(256)) * 10
    names = await chunk_hashes(state)
    assert names == tuple(chunk_hash(state[start : start + CHUNK]) for start in (0, 1000, 2000))
    assert len(set(names)) == 3


@pytest.mark.parametrize("size", [CHUNK // 2, 2 * CHUNK, 1 << 20])
def test_no_donor_chooses_the_size_of_the_chunks(size: int) -> None:
    with pytest.raises(PeerFault, match="in chunks of"):
        read(chunk_bytes=size, hashes=("a",) * -(-2500 // size))
