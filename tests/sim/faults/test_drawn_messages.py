"""Drawn messages are of a valid schema, whatever was heard before; and some of what is drawn was heard."""

import dataclasses
import random
from typing import Any

import pytest

from swarmd.sim.faults.drawn_messages import Draw, Drawing, Heard
from swarmd.swarm.wire.framing import KINDS, from_frame, to_frame
from swarmd.swarm.wire.messages.common import Ballot
from swarmd.swarm.wire.messages.round import Freeze
from swarmd.values import Encoded

DRAWS = 30  # of each kind
DRAWN: dict[str, Draw] = {"record": lambda rng: rng.randbytes(3), "run": lambda rng: {}}


def drawing(seed: object, heard: Heard) -> Drawing:
    return Drawing(random.Random(f"{seed}"), heard, "me", DRAWN)


@pytest.mark.parametrize("kind", KINDS)
def test_every_drawn_message_can_be_sent_and_is_taken(kind: str) -> None:
    heard = Heard()
    for number in range(DRAWS):
        drawn = drawing(f"{kind} {number}", heard).message(KINDS[kind])
        came = from_frame(to_frame(drawn))
        assert type(came) is KINDS[kind]
        heard.take(came)  # what is said next may be close to it


def test_the_same_generator_draws_the_same_message() -> None:
    first, again = (drawing(7, Heard()).message(KINDS["Plan"]) for _ in range(2))
    assert first == again


def test_true_values_are_said_again_and_altered() -> None:
    heard = Heard()
    heard.take(Freeze(step=41, record_hash="a true hash", ballot=Ballot(6, "conductor"), stage=3))
    drawn = [drawing(number, heard).message(Freeze) for number in range(200)]

    def shares(name: str, value: Any) -> float:
        return [getattr(it, name) for it in drawn].count(value) / len(drawn)

    assert 0.4 < shares("record_hash", "a true hash") < 1.0
    assert 0.3 < shares("step", 41) < 1.0
    assert shares("step", 42) > 0.0
    assert any(it.ballot.peer == "conductor" and it.ballot.number == 7 for it in drawn)


def test_a_tensor_that_was_heard_keeps_its_shape_and_gets_other_bytes() -> None:
    heard, tensor = Heard(), Encoded("fp32", (3,), (b"abcdefghijkl",))
    heard.take(KINDS["Gradient"](tensor, 1.0, 2.0))
    drawn = [drawing(number, heard).message(KINDS["Gradient"]).gradient for number in range(100)]
    alike = [it for it in drawn if it.shape == tensor.shape and dataclasses.replace(it, data=tensor.data) == tensor]
    assert any(it.data != tensor.data for it in alike)
