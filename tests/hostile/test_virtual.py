"""Attacks on a simulated swarm, with its defences and without: what stops an attack is what is said to stop it."""

import pytest

from swarmd.sim.world.device import Speed
from swarmd.swarm.history.history import History
from swarmd.swarm.peer import arriving
from swarmd.swarm.state import joiner
from swarmd.values import PeerId
from tests.hostile import virtual
from tests.hostile.attack import Attack
from tests.hostile.catalogue import ATTACKS
from tests.hostile.trial import Spans
from tests.hostile.virtual import play

SPANS = Spans(before=4.0, during=8.0, later=8.0, after=4.0)
ALWAYS = ("skipped-steps", "freeze")  # one that votes stop, and one that roles do; `make hostile` plays the others
pytestmark = pytest.mark.timeout(600)  # a few seconds of CPU each; a busy machine gives them slowly

SHOWN = [attack for attack in ATTACKS.values() if not (attack.physical or attack.minutes)]


async def shows(history: History, source: PeerId, version: int) -> bool:
    """Takes everybody's word."""
    return True


def cases(attacks: list[Attack]) -> list[object]:
    return [pytest.param(it, id=it.name, marks=() if it.name in ALWAYS else pytest.mark.hostile) for it in attacks]


@pytest.mark.parametrize("attack", cases([it for it in SHOWN if not it.open]))
def test_what_is_stopped_does_no_harm(attack: Attack) -> None:
    fare = play(attack, SPANS)
    assert not fare.harm, fare


@pytest.mark.parametrize("attack", cases([it for it in SHOWN if it.defence]))
def test_what_is_stopped_works_without_its_defence(attack: Attack) -> None:
    fare = play(attack, SPANS, attack.defence)
    assert fare.harm, fare


@pytest.mark.parametrize("attack", cases([it for it in SHOWN if it.open]))
def test_what_is_open_still_works(attack: Attack) -> None:
    fare = play(attack, SPANS)
    assert fare.harm, fare


@pytest.mark.parametrize("believing", [False, True])
def test_no_state_is_given_up_for_a_version_that_does_not_exist(
    monkeypatch: pytest.MonkeyPatch, *, believing: bool
) -> None:
    """A swarm whose steps are slow has the time to look for it; it gives its state up where every card is believed, and
    who says it is ahead need not show a record.
    """
    monkeypatch.setattr(virtual, "SPEED", Speed(0.9, 1.8))
    monkeypatch.setattr(virtual, "START_S", 600.0)
    if believing:
        for module in (arriving, joiner):
            monkeypatch.setattr(module, "believed_version", lambda membership, history: membership.newest().version)
        monkeypatch.setattr(History, "is_shown", shows)
    fare = play(ATTACKS["far-ahead"], Spans(before=30.0, during=60.0, later=40.0, after=20.0))
    assert bool(fare.harm) == believing, fare
