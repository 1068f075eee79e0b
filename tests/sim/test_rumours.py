"""What strangers say of others by gossip: it is heard, and changes nothing."""

from swarmd.config import fingerprint
from swarmd.sim.measure.figures import open_world, plan_run
from swarmd.sim.world.clock import run_virtual
from swarmd.sim.world.world import SimPeer
from swarmd.swarm.wire.framing import to_frame
from swarmd.swarm.wire.messages.presence import Summary
from tests.swarm.cards import card

STAGES, REPLICAS = 3, 2
INVENTED = 1500


def slander(it: SimPeer, names: list[str]) -> None:
    """A stranger says by gossip that all are elsewhere, in later lives, and that stage 1 is full of peers far ahead."""
    say = it.transport.listeners[f"swarmd/{fingerprint(it.peer.run_config)}/swarm"]
    moved = tuple(card(name, stage=900, incarnation=1 << 61, addresses=(f"/sim/{name}",)) for name in names)
    say("stranger", to_frame(Summary(0, moved, 4000)))
    for first in range(0, INVENTED, 16):
        invented = tuple(card(f"x{first + number}", stage=1, version=1 << 40) for number in range(16))
        say("stranger", to_frame(Summary(1, invented, 4000)))


def test_a_stranger_s_gossip_moves_nobody_and_invents_nobody() -> None:
    async def main() -> None:
        world = open_world(plan_run(STAGES, 4, 1000))
        for number in range(STAGES * REPLICAS):
            await world.start(f"peer{number}", stage=number % STAGES)
        await world.sleep(20)
        before = {name: it.peer.history.version for name, it in world.peers.items()}
        for it in world.peers.values():
            slander(it, list(world.peers))
        lives = [it.peer.own.card.incarnation for it in world.peers.values()]
        await world.sleep(30)
        for name, it in world.peers.items():
            members = it.peer.membership
            assert [len(members.stage(stage)) for stage in range(STAGES)] == [REPLICAS] * STAGES
            assert (members.population(), members.summaries().keys() - {0, 1, 2}) == (STAGES * REPLICAS, set())
            assert it.peer.history.version > before[name], "the steps go on"
            assert it.peer.own.state == "serving"
        assert [it.peer.own.card.incarnation for it in world.peers.values()] == lives
        await world.stop()

    run_virtual(main())
