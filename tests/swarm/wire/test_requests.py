"""Requests: each says what it is answered with, and one handler answers it."""

import ast

import pytest

from swarmd.swarm.wire.framing import KINDS
from swarmd.swarm.wire.messages.common import Ack, Request
from swarmd.swarm.wire.messages.hop import Busy, Gradient, Hop, Loss, NotFinite, Room
from swarmd.swarm.wire.messages.presence import Hello
from tests.house import parse, sources
from tests.swarm.wire.samples import ENCODED, filled

REQUESTS = {name: kind for name, kind in KINDS.items() if issubclass(kind, Request)}
OWN = ("Hello", "AskSettings")  # answered by `Links` itself


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_accepts_its_answers_and_no_other_message(name: str) -> None:
    request = filled(REQUESTS[name])
    answers = REQUESTS[name].answers()
    assert answers
    for kind in KINDS.values():
        if name != "Hop":
            assert request.accepts(filled(kind)) == (kind in answers)


def test_a_union_is_the_kinds_in_it_and_a_message_may_be_its_own_answer() -> None:
    assert Room.answers() == [Ack]
    assert Hop.answers() == [Gradient, Loss, NotFinite, Busy]
    assert Hello.answers() == [Hello]


@pytest.mark.parametrize("evaluate", [False, True])
def test_a_loss_answers_hops_that_evaluate_and_nothing_else_does(evaluate: bool) -> None:
    hop = Hop(1, 2, "record", False, evaluate, "fp32", b"tokens", ENCODED)
    assert hop.accepts(Loss(0.5, 3)) == evaluate
    for answer in (Gradient(ENCODED, 0.0, 0.0), NotFinite(), Busy(1)):
        assert hop.accepts(answer) != evaluate
    assert not hop.accepts(Ack())


def test_every_request_has_one_handler() -> None:
    """Of which mypy checks what it takes and gives."""
    handled = [
        ast.unparse(node.args[0])
        for path in sources("swarmd/swarm")
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "handle"
    ]
    assert sorted([*handled, *OWN]) == sorted(REQUESTS)
