"""Damaged frames: each kind of damage is a fault of the peer that sent it."""

import random
from typing import Any

import pytest

from swarmd.errors import PeerFault
from swarmd.sim.world.damage import WAYS
from swarmd.sim.world.world import World
from swarmd.swarm.wire.framing import from_frame, to_frame
from swarmd.swarm.wire.messages.commit import Commit
from swarmd.swarm.wire.messages.common import Ack
from swarmd.swarm.wire.messages.hop import Beat, Hop, HopBeat, Locate, Room
from swarmd.swarm.wire.messages.state import Chunk
from swarmd.swarm.wire.messages.step import Lease
from swarmd.values import Encoded
from tests.sim.toy import check_agreement, everyone_at, moment
from tests.sim.world.worlds import traced

MESSAGES = [
    Ack(),
    Room(3),
    Locate(1, 2),
    Beat((HopBeat(1, 2, "waiting", 1.0),), 1, 0.5, 0.1),
    Lease(1, ((0, 3),), again=False),
    Hop(
        1,
        2,
        "r",
        again=False,
        evaluate=False,
        codec="fp32",
        tokens=b"1234",
        activation=Encoded("fp32", (1,), (b"abcd",)),
    ),
    Commit(b"record"),
    Chunk(b"data"),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_every_damage_is_a_fault_of_form_or_bytes_that_are_missing(message: Any) -> None:
    frame = to_frame(message)
    for way in WAYS:
        for seed in range(20):
            bad = way(frame, random.Random(seed))
            try:
                read = from_frame(bad)
            except PeerFault:
                continue
            assert way.__name__ == "_cut_buffer", f"{way.__name__} went unnoticed: {bad}"
            assert read != message
            assert bad.nbytes < frame.nbytes


def test_damaged_frames_break_the_connection_and_training_goes_on() -> None:
    async def events(world: World) -> None:
        await moment(world, lambda: everyone_at(world, 1))
        world.network.corrupt("middle1", 0.2)
        await moment(world, lambda: any(event.what == "fault" for event in world.trace.events))
        world.heal()

    check_agreement(traced(events))
