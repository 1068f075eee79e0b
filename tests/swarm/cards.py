"""Cards of made-up peers."""

import dataclasses
from typing import Any

from swarmd.swarm.wire.messages.presence import Card

PLAIN = Card(
    peer="p",
    incarnation=1,
    sequence=1,
    addresses=("/sim/p",),
    stage=0,
    state="serving",
    version=0,
    tokens=0,
    record="",
    data="",
    device="cpu",
    codecs=("fp32",),
    forward=0,
    backward=0,
    in_flight=0,
    room=4,
    service_seconds=0.0,
    microbatches_per_second=0.0,
)


def card(peer: str, **changes: Any) -> Card:
    return dataclasses.replace(PLAIN, peer=peer, **changes)
