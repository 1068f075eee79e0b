"""Cards of made-up peers, and a membership full of them."""

import dataclasses
from typing import Any

from swarmd.swarm.membership.table import Membership
from swarmd.swarm.wire.messages.presence import Card
from swarmd.swarm.wire.own_card import OwnCard

PLAIN = Card(
    peer="p",
    incarnation=1,
    sequence=1,
    addresses=("/sim/p",),
    stage=0,
    state="serving",
    version=0,
    tokens=0,
    record_hash="",
    data_digest="",
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


def crowd(stages: int, replicas: int) -> Membership:
    """The membership of a peer of stage 0 that knows so many others of each stage."""
    members = Membership(OwnCard(card("me", stage=0)))
    for number in range(stages * replicas):
        members.hear(card(f"p{number:03d}", stage=number % stages), 0.0)
    return members
