"""The catalogue of attacks is one in which a defence can be told from an attacker's mistake."""

import pytest

from swarmd.swarm.wire.roles import ROLES
from tests.hostile.attack import Attack
from tests.hostile.catalogue import ATTACKS
from tests.hostile.weak_daemon import DEFENCES, ROLE

SWITCHES = {*DEFENCES} | {f"{ROLE}{kind.__name__}" for kind in ROLES}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=lambda it: it.name)
def test_an_attack_is_open_or_names_what_stops_it(attack: Attack) -> None:
    """One that is neither has nothing that could be switched off."""
    assert not (attack.open and attack.defence)
    assert {*filter(None, attack.defence.split(","))} <= SWITCHES


def test_every_switch_is_used() -> None:
    assert {*DEFENCES} <= {name for attack in ATTACKS.values() for name in attack.defence.split(",")}
