"""Which of the donors' states a joiner takes when one of them lies, and what it says about it."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.state.manifest import take_snapshot
from swarmd.swarm.state.snapshot_search import MOST_SECONDS, SAME_VERSION_SECONDS, UNCOMPARED_TRIES
from swarmd.swarm.wire.messages.state import AskChunk, AskSnapshot, Chunk, Snapshot
from tests.swarm.state.holders import CHAIN, CHUNK, Holder, Node, crowd, joiner_of, meet, names, seconds, state_of

OTHER = state_of(31)  # what a liar says that version 5 is


def lie(liar: Node) -> None:
    """A manifest that is sound in itself, of other bytes; and its chunks."""
    liar.compute.version = 31


@pytest.mark.parametrize("place", range(3))
def test_a_liar_beside_two_honest_donors_gives_nothing(place: int) -> None:
    async def main() -> None:
        joiner, donors = crowd(3)
        lie(donors[place])
        it = joiner_of(joiner, donors)
        assert await it.pull(names(donors))
        assert joiner.compute.imported == [state_of(5)]
        assert not donors[place].asked
        liar, others = donors[place].name, ", ".join(it.name for it in donors if it is not donors[place])
        assert it.differing == (
            f"of stage 0 at version 5 {liar} and {others} offer different states: it is taken from {others}"
        )

    run_virtual(main())


def test_a_liar_that_answers_first_gains_nothing() -> None:
    async def main() -> None:
        joiner, (liar, *honest) = crowd(3)
        lie(liar)
        for donor in honest:
            donor.compute.export_seconds = 10.0
        assert await joiner_of(joiner, [liar, *honest]).pull(names([liar, *honest]))
        assert joiner.compute.imported == [state_of(5)]

    run_virtual(main())


def test_a_liar_that_was_alone_at_first_is_left_once_the_others_answer() -> None:
    async def main() -> None:
        joiner, (liar, *honest) = crowd(3)
        lie(liar)
        liar.uplink(CHUNK)  # a minute for the whole
        for donor in honest:
            donor.compute.export_seconds = 25.0
        it = joiner_of(joiner, [liar, *honest])
        assert await it.pull(names([liar, *honest]))
        assert joiner.compute.imported == [state_of(5)]
        assert it.differing

    run_virtual(main())


def test_a_liar_that_was_the_only_one_to_greet_gains_nothing() -> None:
    """The other members of the last record were stopped when this peer came: it has met nobody else yet."""

    async def main() -> None:
        joiner, (liar, *honest) = crowd(3)
        joiner.history.origin.guide = liar.name
        lie(liar)
        for donor in honest:
            donor.compute.export_seconds = MOST_SECONDS / 2
        await joiner.links.greet(liar.name)

        def met() -> list[str]:
            return [it.name for it in (liar, *honest) if joiner.membership.get(it.name) is not None]

        assert met() == [liar.name]
        assert await joiner_of(joiner, [liar, *honest]).pull(met)
        assert joiner.compute.imported == [state_of(5)]

    run_virtual(main())


def test_strangers_do_not_count_however_many_they_are() -> None:
    async def main() -> None:
        joiner, honest = crowd(1)
        strangers: list[Node] = [Holder(joiner.network, f"stranger{number}", 5) for number in range(7)]
        meet(joiner, *honest, *strangers)
        for stranger in strangers:
            lie(stranger)
        everyone = [*strangers, *honest]
        it = joiner_of(joiner, everyone)
        assert await it.pull(names(everyone))
        assert joiner.compute.imported == [state_of(5)]
        assert "stranger0"[-8:] in it.differing

    run_virtual(main())


def test_strangers_whose_record_names_them_do_not_count_for_a_newcomer_with_a_guide() -> None:
    async def main() -> None:
        joiner, honest = crowd(1)
        joiner.history.origin.guide = honest[0].name
        strangers: list[Node] = [Holder(joiner.network, f"stranger{number}", 5) for number in range(3)]
        meet(joiner, *honest, *strangers)
        entry = dataclasses.replace(CHAIN[4].stages[0], members=tuple(it.name for it in strangers))
        lie = dataclasses.replace(CHAIN[4], stages=(entry, *CHAIN[4].stages[1:]))
        for stranger in strangers:

            async def offer(peer: str, ask: AskSnapshot) -> Snapshot:
                snapshot = await take_snapshot(CHAIN[4], OTHER)
                return Snapshot(5, lie.raw, snapshot.nbytes, snapshot.chunk_bytes, snapshot.hashes)

            stranger.links.handle(AskSnapshot, offer)
        everyone = [*strangers, *honest]
        assert await joiner_of(joiner, everyone).pull(names(everyone))
        assert joiner.compute.imported == [state_of(5)]

    run_virtual(main())


def test_a_liar_with_the_right_manifest_costs_one_chunk() -> None:
    async def main() -> None:
        joiner, (liar, *honest) = crowd(3)

        async def wrong(ask: AskChunk, usual: Callable[[], Awaitable[Chunk]]) -> Chunk:
            return Chunk(bytes(CHUNK))

        liar.chunks(wrong)
        for donor in honest:
            donor.uplink(20 * CHUNK)
        it = joiner_of(joiner, [liar, *honest])
        assert await it.pull(names([liar, *honest]))
        assert joiner.compute.imported == [state_of(5)]
        assert len(liar.asked) * CHUNK == CHUNK, "it isn't asked again"
        assert liar.name not in it.downloaded

    run_virtual(main())


@pytest.mark.parametrize("count", [1, 2])
def test_as_many_liars_as_others_are_waited_for_until_someone_comes(count: int) -> None:
    async def main() -> None:
        joiner, donors = crowd(2 * count + 1)
        late = donors.pop()
        for liar in donors[:count]:
            lie(liar)
        it = joiner_of(joiner, donors)
        assert not await it.pull(names(donors))
        assert it.differing.endswith("none is taken until more peers agree")
        assert it.tried == it.differing, "status says for what it waits"
        assert not any(donor.asked for donor in donors)
        donors.append(late)
        assert await it.pull(names(donors))
        assert joiner.compute.imported == [state_of(5)]

    run_virtual(main())


def test_a_single_donor_is_taken_at_its_word_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        joiner, donors = crowd(1)
        it = joiner_of(joiner, donors)
        assert await it.pull(names(donors))
        assert it.differing == ""

    with caplog.at_level("INFO"):
        run_virtual(main())
    assert "the state of stage 0 at version 5 is taken from a alone" in caplog.text


def test_donors_at_different_versions_are_brought_to_one_and_compared() -> None:
    async def main() -> None:
        joiner, (early, late, liar) = crowd(3)
        late.commit()
        liar.commit()
        lie(liar)
        asyncio.get_running_loop().call_later(2.0, early.commit)
        it = joiner_of(joiner, [early, late, liar])
        assert await it.pull(names([early, late, liar]))
        assert joiner.compute.imported == [state_of(6)]
        assert it.differing

    run_virtual(main())


def test_a_donor_that_cannot_be_brought_to_another_version_holds_nobody_up_for_long() -> None:
    async def main() -> None:
        joiner, (early, late) = crowd(2)
        late.commit()
        it = joiner_of(joiner, [early, late])

        async def pull() -> None:
            while not await it.pull(names([early, late])):
                assert "different versions" in it.tried, "status says for what it waits"

        assert await seconds(pull()) < UNCOMPARED_TRIES * (MOST_SECONDS + 2 * SAME_VERSION_SECONDS)
        assert joiner.history.version == 6

    run_virtual(main())


def test_a_donor_whose_chunks_have_another_size_is_refused() -> None:
    async def main() -> None:
        joiner, (liar, honest) = crowd(2)

        async def offer(peer: str, ask: AskSnapshot) -> Any:
            whole = await take_snapshot(CHAIN[4], state_of(5))
            return Snapshot(5, whole.record, whole.nbytes, whole.nbytes, whole.hashes[:1])

        liar.links.handle(AskSnapshot, offer)
        it = joiner_of(joiner, [liar, honest])
        assert await it.pull(names([liar, honest]))
        assert set(it.downloaded) == {honest.name}
        assert not liar.asked

    run_virtual(main())


def test_donors_that_commit_faster_than_they_are_asked_are_brought_to_the_next_version() -> None:
    async def main() -> None:
        joiner, donors = crowd(2)
        donors[1].commit()
        donors[1].compute.export_seconds = 0.5
        donors[0].compute.export_seconds = 0.1

        async def commit() -> None:
            for _ in range(10):
                await asyncio.sleep(0.3)
                for donor in donors:
                    async with donor.history.lock:
                        donor.commit()

        committing = asyncio.create_task(commit())
        found = await joiner_of(joiner, donors)._search.find(names(donors), set(), 0, 0)
        assert found is not None
        assert sorted(found.offers) == ["a", "b"]
        await committing

    run_virtual(main())
