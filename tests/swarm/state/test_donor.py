"""A donor's snapshots: pinned, shared, bounded, and never in the way of its own work."""

import asyncio

import pytest

from swarmd.chunks import chunk_hash
from swarmd.errors import Refused
from swarmd.sim.world.clock import run_virtual
from swarmd.sim.world.network import SimNetwork
from swarmd.swarm.state import donor as donor_module
from swarmd.swarm.wire.messages.state import AskChunk
from tests.swarm.state.holders import CHUNK, Node, ask, crowd, meet, seconds, state_of


def test_joiners_share_a_snapshot_also_some_steps_later() -> None:
    async def main() -> None:
        joiner, (donor,) = crowd(1)
        donor.compute.export_seconds = 1.0
        both = await asyncio.gather(ask(joiner, donor), ask(joiner, donor))
        donor.commit()
        donor.commit()
        assert {it.version for it in (*both, await ask(joiner, donor), await ask(joiner, donor, 5))} == {5}
        assert donor.compute.exports == 1
        donor.commit()
        assert (await ask(joiner, donor)).version == 8

    run_virtual(main())


def test_at_most_two_versions_are_pinned_and_those_that_are_pulled_stay() -> None:
    async def main() -> None:
        network = SimNetwork()
        donor, joiners = Node(network, "a", 5), [Node(network, name, ready=False) for name in ("one", "two", "three")]
        meet(donor, *joiners)
        one, two, three = joiners

        async def touch(joiner: Node, version: int) -> None:
            await joiner.links.ask("a", AskChunk(version, 0), deadline_s=1)

        for joiner, version in ((one, 5), (two, 8)):
            assert (await ask(joiner, donor)).version == version
            await touch(joiner, version)
            for _ in range(3):
                donor.commit()
        with pytest.raises(Refused, match="pulled"):
            await ask(three, donor)
        await asyncio.sleep(donor_module.PULLED_SECONDS - 1)
        await touch(two, 8)
        await asyncio.sleep(2)
        assert (await ask(three, donor)).version == 11, "nobody pulls version 5 any more"
        await touch(two, 8)
        with pytest.raises(Refused, match="not pinned"):
            await touch(one, 5)
        donor.donor.sweep(asyncio.get_running_loop().time() + donor_module.PINNED_SECONDS + 1)
        with pytest.raises(Refused, match="not pinned"):
            await touch(two, 8)

    run_virtual(main())


def test_a_joiner_that_asks_for_another_version_pulls_none_of_those_before() -> None:
    """It begins anew, again and again, where its backlog doesn't fit; its own beginnings are not in its way."""

    async def main() -> None:
        network = SimNetwork()
        donor, joiner, other = Node(network, "a", 5), Node(network, "one", ready=False), Node(network, "b", ready=False)
        meet(donor, joiner, other)
        for version in (5, 8, 11, 14):
            assert (await ask(joiner, donor)).version == version
            await joiner.links.ask("a", AskChunk(version, 0), deadline_s=1)
            for _ in range(3):
                donor.commit()
        assert (await ask(other, donor)).version == 17
        await other.links.ask("a", AskChunk(17, 0), deadline_s=1)
        for _ in range(3):
            donor.commit()
        assert (await ask(joiner, donor)).version == 20
        assert await other.links.ask("a", AskChunk(17, 0), deadline_s=1), "what another one pulls stays"

    run_virtual(main())


def test_the_place_of_a_joiner_that_was_killed_is_free_at_once() -> None:
    async def main() -> None:
        network = SimNetwork()
        donor, joiners = Node(network, "a", 5), [Node(network, name, ready=False) for name in ("one", "two", "three")]
        meet(donor, *joiners)
        donor.links.on_lost(donor.donor.lost)
        for joiner in joiners[:2]:
            snapshot = await ask(joiner, donor)
            await joiner.links.ask("a", AskChunk(snapshot.version, 0), deadline_s=1)
            for _ in range(3):
                donor.commit()
        with pytest.raises(Refused, match="pulled"):
            await ask(joiners[2], donor)
        network.kill("two")
        await asyncio.sleep(0.1)
        assert (await ask(joiners[2], donor)).version == 11
        assert await joiners[0].links.ask("a", AskChunk(5, 1), deadline_s=1), "the other one goes on"
        with pytest.raises(Refused, match="not pinned"):
            await joiners[0].links.ask("a", AskChunk(8, 0), deadline_s=1)

    run_virtual(main())


def test_what_is_made_for_a_joiner_that_is_killed_meanwhile_is_in_nobody_s_way() -> None:
    async def main() -> None:
        network = SimNetwork()
        donor, joiners = Node(network, "a", 5), [Node(network, name, ready=False) for name in ("one", "two", "three")]
        meet(donor, *joiners)
        donor.links.on_lost(donor.donor.lost)
        donor.compute.export_seconds = 1.0
        for joiner in joiners[:2]:
            asking = asyncio.create_task(ask(joiner, donor))
            await asyncio.sleep(0.5)
            network.kill(joiner.name)
            await asyncio.gather(asking, return_exceptions=True)
            await asyncio.sleep(1.0)
            for _ in range(3):
                donor.commit()
        assert (await ask(joiners[2], donor)).version == 11

    run_virtual(main())


def test_chunks_on_their_way_to_a_joiner_that_was_killed_keep_nobody_waiting() -> None:
    async def main() -> None:
        ways = donor_module.Ways()
        for number in range(donor_module.CHUNKS_SERVED_AT_ONCE):
            await ways.take(f"joiner{number}")
        waiting = asyncio.create_task(ways.take("next"))
        await asyncio.sleep(1)
        ways.lost("joiner3")
        assert await seconds(waiting) == 0  # type: ignore[arg-type]

    run_virtual(main())


def test_a_version_that_is_about_to_come_is_waited_for_and_others_are_refused() -> None:
    async def main() -> None:
        joiner, (donor,) = crowd(1)
        asyncio.get_running_loop().call_later(1, donor.commit)
        assert (await ask(joiner, donor, 6)).version == 6
        with pytest.raises(Refused, match="not pinned"):
            await ask(joiner, donor, 4)
        with pytest.raises(Refused):
            await ask(joiner, donor, 30)

    run_virtual(main())


def test_a_commit_waits_only_while_the_state_is_copied() -> None:
    async def main() -> None:
        joiner, (donor,) = crowd(1)
        donor.compute.export_seconds = 0.5
        task = asyncio.create_task(ask(joiner, donor))
        await asyncio.sleep(0.1)

        async def commit() -> None:
            async with donor.history.lock:
                donor.commit()

        assert await seconds(commit()) < 0.5
        assert (await task).version == 5
        assert chunk_hash(state_of(5)[:CHUNK]) == (await task).hashes[0]

    run_virtual(main())


def test_a_greedy_crowd_of_joiners_gets_its_chunks_a_few_at_a_time() -> None:
    async def main() -> None:
        ways = donor_module.Ways()
        loop = asyncio.get_running_loop()
        for number in range(donor_module.CHUNKS_SERVED_AT_ONCE):
            await ways.take(f"joiner{number}")
        assert loop.time() == 0
        assert await seconds(ways.take("one more")) == pytest.approx(donor_module.CHUNK_WAY_SECONDS)
        for _ in range(100):  # one whose chunks arrive isn't held up
            await ways.take("steady")
        assert loop.time() < 3 * donor_module.CHUNK_WAY_SECONDS

    run_virtual(main())


def test_a_joiner_whose_connection_breaks_while_it_waits_is_forgotten() -> None:
    async def main() -> None:
        ways = donor_module.Ways()
        for number in range(donor_module.CHUNKS_SERVED_AT_ONCE):
            await ways.take(f"joiner{number}")
        gone = asyncio.create_task(ways.take("gone"))
        await asyncio.sleep(1)
        gone.cancel()
        assert await seconds(ways.take("next")) == pytest.approx(donor_module.CHUNK_WAY_SECONDS - 1)

    run_virtual(main())
