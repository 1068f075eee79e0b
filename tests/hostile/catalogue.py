"""All attacks, by name."""

from tests.hostile.attack import Attack
from tests.hostile.attacks import connections, history, hops, newcomers, orders, presence

ATTACKS: dict[str, Attack] = {
    attack.name: attack for room in (history, orders, hops, presence, newcomers, connections) for attack in room.ATTACKS
}
