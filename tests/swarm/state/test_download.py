"""A stage's state in chunks from several donors: the share of each, the ones that are given up, the chunks kept."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.state import download as download_module
from swarmd.swarm.state import manifest as statesync
from swarmd.swarm.state.download import Download, OutOfDonors, Sources, of_replicas
from swarmd.swarm.wire.messages.state import AskChunk, AskSnapshot, Chunk
from swarmd.values import PeerId
from tests.swarm.state.holders import CHUNK, CHUNKS, RUN, Node, crowd, seconds, state_of


async def manifest_of(joiner: Node, donor: Node) -> statesync.Manifest:
    snapshot = await joiner.links.ask(donor.name, AskSnapshot(0), deadline_s=10)
    return statesync.read_manifest(RUN, snapshot, donor.compute.gradient_size)


async def begin(joiner: Node, *donors: Node, liars: set[PeerId] | None = None) -> Download:
    """A download of what the first donor has, from whichever has it."""
    manifest = await manifest_of(joiner, donors[0])
    names = [donor.name for donor in donors]
    liars = set() if liars is None else liars
    sources = Sources(lambda: names, of_replicas(0, manifest.version), liars)
    return Download(RUN, joiner.links, 0, joiner.compute.gradient_size, manifest, sources)


def test_four_donors_with_thin_uplinks_are_almost_four_times_as_fast() -> None:
    async def main(count: int) -> float:
        joiner, donors = crowd(count)
        for donor in donors:
            donor.uplink(4 * CHUNK)
        download = await begin(joiner, *donors)
        took = await seconds(download.run())
        assert download.state == state_of(5)
        return took

    one, four = run_virtual(main(1)), run_virtual(main(4))
    assert one == pytest.approx(CHUNKS / 4, rel=0.1)
    assert four < one / 3.3


def test_a_fast_donor_gives_more_and_the_slow_one_holds_nobody_up() -> None:
    async def main() -> None:
        joiner, (fast, slow) = crowd(2)
        fast.uplink(8 * CHUNK)
        slow.uplink(1 * CHUNK)
        download = await begin(joiner, fast, slow)
        took = await seconds(download.run())
        assert took < 1.15 * CHUNKS / 9 + 0.5
        assert 4 < download.given["a"] / download.given["b"] < 14
        assert len(fast.asked) + len(slow.asked) <= CHUNKS + 4, "hardly anything was asked twice"

    run_virtual(main())


def test_no_donor_is_asked_for_many_chunks_at_once() -> None:
    async def main() -> None:
        joiner, donors = crowd(3)
        for donor in donors:
            donor.uplink(50 * CHUNK)
        await (await begin(joiner, *donors)).run()
        assert all(1 < donor.most_at_once <= statesync.CHUNKS_AT_ONCE for donor in donors)

    run_virtual(main())


def test_a_paused_donor_costs_seconds() -> None:
    async def main() -> None:
        joiner, (good, paused) = crowd(2)
        good.uplink(10 * CHUNK)
        paused.pause_after(10)
        download = await begin(joiner, paused, good)
        took = await seconds(download.run())
        assert download.state == state_of(5)
        assert took < CHUNKS / 10 + download_module.LATE_FLOOR_SECONDS + 1

    run_virtual(main())


def test_a_single_donor_that_pauses_for_a_minute_goes_on_where_it_was() -> None:
    async def main() -> None:
        joiner, (donor,) = crowd(1)
        awake = asyncio.Event()

        async def give(ask: AskChunk, usual: Callable[[], Awaitable[Chunk]]) -> Chunk:
            if len(donor.asked) >= 10:
                await awake.wait()
            return await usual()

        donor.chunks(give)
        download = await begin(joiner, donor)
        asyncio.get_running_loop().call_later(60, awake.set)
        assert 60 < await seconds(download.run()) < 65
        assert len(donor.asked) == CHUNKS, "nothing was asked twice"

    run_virtual(main())


def test_a_liar_is_asked_once_and_the_others_give_everything() -> None:
    async def main() -> None:
        joiner, (honest, liar, other) = crowd(3)

        async def lie(ask: AskChunk, usual: Callable[[], Awaitable[Chunk]]) -> Chunk:
            return Chunk(bytes(CHUNK))

        for donor in (honest, other):
            donor.uplink(20 * CHUNK)
        liar.chunks(lie)
        liars: set[PeerId] = set()
        download = await begin(joiner, honest, liar, other, liars=liars)
        await download.run()
        assert download.state == state_of(5)
        assert liars == {"b"}
        assert len(liar.asked) == 1
        assert "b" not in download.given

    run_virtual(main())


def test_a_donor_with_another_manifest_of_the_same_version_is_not_used() -> None:
    async def main() -> None:
        joiner, (donor, strange) = crowd(2)
        strange.compute.version = 9  # at version 5 with other parameters
        download = await begin(joiner, donor, strange)
        await download.run()
        assert set(download.given) == {"a"}
        assert not strange.asked

    run_virtual(main())


def test_donors_die_one_after_the_other_and_the_last_one_gives_the_rest() -> None:
    async def main() -> None:
        joiner, donors = crowd(4)
        for donor in donors:
            donor.uplink(4 * CHUNK)
        download = await begin(joiner, *donors)
        task = asyncio.create_task(download.run())
        for donor in donors[:-1]:
            await asyncio.sleep(1)
            donor.network.kill(donor.name)
        await task
        assert download.state == state_of(5)
        assert set(download.given) == set("abcd")

    run_virtual(main())


def test_a_broken_connection_is_dialled_again() -> None:
    async def main() -> None:
        joiner, (donor,) = crowd(1)
        donor.uplink(8 * CHUNK)
        download = await begin(joiner, donor)
        task = asyncio.create_task(download.run())
        await asyncio.sleep(2)
        donor.network.cut("joiner", "a")
        with pytest.raises(OutOfDonors):
            await task
        manifest, pieces = download.manifest, download.pieces()
        assert len(pieces) > 5
        sources = Sources(lambda: ["a"], of_replicas(0, manifest.version))
        again = Download(RUN, joiner.links, 0, joiner.compute.gradient_size, manifest, sources)
        await again.keep(pieces)
        before = len(donor.asked)
        await again.run()
        assert again.state == state_of(5)
        assert len(donor.asked) - before == CHUNKS - len(pieces), "what had come is kept"

    run_virtual(main())


def test_one_of_two_whose_connection_breaks_gives_again_later() -> None:
    async def main() -> None:
        joiner, (one, two) = crowd(2)
        one.uplink(4 * CHUNK)
        two.uplink(4 * CHUNK)
        download = await begin(joiner, one, two)
        task = asyncio.create_task(download.run())
        await asyncio.sleep(1)
        one.network.cut("joiner", "b")
        await asyncio.sleep(0.1)
        given = download.given["b"]
        await task
        assert download.given["b"] > given + 5

    run_virtual(main())


def test_the_last_chunk_of_a_slow_donor_is_asked_of_a_fast_one_too() -> None:
    async def main() -> None:
        joiner, (fast, slow) = crowd(2)
        fast.uplink(20 * CHUNK)
        slow.uplink(CHUNK / 20)  # 20 s for a chunk
        download = await begin(joiner, fast, slow)
        assert await seconds(download.run()) < CHUNKS / 20 + download_module.FIRST_SECONDS + 1

    run_virtual(main())
