"""Faults for logical points (`world/points.py`): each strikes the peer that came to the point it was planned for."""

from collections.abc import Awaitable

from swarmd.sim.world.points import DROP, Drop
from swarmd.sim.world.world import Action, World
from swarmd.values import PeerId


def crash(world: World, name: PeerId) -> None:
    """Kills its process."""
    world.crash(name)


def lose_power(world: World, name: PeerId) -> None:
    """Silences its machine for good; nobody is told."""
    world.crash(name, power=True)


def drop_frame(world: World, name: PeerId) -> Drop:
    """Loses the frame of this point: the asker never gets its answer."""
    return DROP


def run_out_of_memory(world: World, name: PeerId) -> None:
    """Fails the task that its device is about to do. For points before a method of Compute."""
    raise MemoryError("there is no memory left")


def hang(world: World, name: PeerId) -> None:
    """Hangs its device in the present task."""
    world.hang(name)


def restart_after(seconds: float, *, disk: bool = True, power: bool = False) -> Action:
    """Kills its process, and starts the same peer again after a while."""

    def act(world: World, name: PeerId) -> Awaitable[None]:
        world.crash(name, power=power)

        async def later() -> None:
            await world.sleep(seconds)
            if name not in world.peers:
                await world.restart(name, disk=disk)

        return later()

    return act


def pause_for(seconds: float) -> Action:
    """Stops its machine for a while."""

    def act(world: World, name: PeerId) -> Awaitable[None]:
        world.pause(name)
        machine = world.peers[name].machine

        async def end() -> None:
            await world.sleep(seconds)
            machine.resume()

        return end()

    return act


def cut_from(other: PeerId) -> Action:
    """Resets its connections to another peer."""

    def act(world: World, name: PeerId) -> None:
        if other != name:
            world.network.cut(name, other)

    return act


def blocked_from(other: PeerId, seconds: float) -> Action:
    """Lets nothing through to another peer nor back, for a while."""

    def act(world: World, name: PeerId) -> Awaitable[None]:
        world.network.block(name, other)
        world.network.block(other, name)

        async def end() -> None:
            await world.sleep(seconds)
            world.network.unblock(name, other)
            world.network.unblock(other, name)

        return end()

    return act
