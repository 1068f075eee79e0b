"""Checkpoints between peers: what of a disk counts, what is given out of it, and what is taken from other disks."""

import asyncio
import dataclasses
from types import SimpleNamespace
from typing import Any, cast

import pytest

from swarmd import chunks
from swarmd.chunks import state_root
from swarmd.errors import OutOfRange, Refused
from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.history.record import Record, record_to_plain
from swarmd.swarm.history.record_format import write_record
from swarmd.swarm.ports import SavedCheckpoint
from swarmd.swarm.state.disks import ASKED_AT_ONCE, CHUNKS_AT_ONCE, OPENED_LIMIT, Disks
from swarmd.swarm.state.download import Download, OutOfDonors
from swarmd.swarm.wire.messages.disks import (
    AskCheckpoint,
    AskCheckpointChunk,
    AskCheckpointList,
    CheckpointList,
    CheckpointName,
)
from swarmd.values import Buffer
from tests.swarm.cards import card
from tests.swarm.fake_links import FakeLinks
from tests.swarm.records import RUN, record

STATE = b"0123456789"
CHUNK = 4
RECORD = record(step=3)
OTHER = dataclasses.replace(RECORD, total_tokens=1)  # of another history
CHECKPOINT = CheckpointName(3, 1, RECORD.state)
MEMBERS = "abcdefgh"


def on_disk() -> CheckpointName:
    """The name with the root that the state has in chunks as small as here."""
    return dataclasses.replace(CHECKPOINT, root=state_root(STATE))


class FakeStore:
    """A disk with whole checkpoints."""

    def __init__(self) -> None:
        self.checkpoints: dict[tuple[int, int], tuple[bytes, bytes]] = {}
        self.loads = self.reading = self.most_at_once = 0

    def keep(self, stage: int, of: Record = RECORD, state: bytes = STATE, **changes: Any) -> None:
        self.checkpoints[of.step, stage] = state, write_record({**record_to_plain(of), **changes})

    async def list_checkpoints(self) -> list[SavedCheckpoint]:
        kept = self.checkpoints.items()
        return [SavedCheckpoint(*place, raw, state_root(state)) for place, (state, raw) in kept]

    def damaged(self) -> list[tuple[int, int]]:
        return [(2, 0)]

    async def load_checkpoint(self, version: int, stage: int, root: str = "") -> tuple[bytes, bytes] | None:
        self.loads += 1
        await asyncio.sleep(1)
        found = self.checkpoints.get((version, stage))
        return found if found is not None and root in ("", state_root(found[0])) else None

    async def read_checkpoint(self, version: int, stage: int, start: int, stop: int) -> bytes | None:
        self.reading += 1
        self.most_at_once = max(self.most_at_once, self.reading)
        await asyncio.sleep(1)
        self.reading -= 1
        found = self.checkpoints.get((version, stage))
        assert found is None or stop <= len(found[0])
        return found[0][start:stop] if found is not None else None


class Node:
    """A peer with a disk."""

    def __init__(self, name: str, everyone: dict[str, FakeLinks]) -> None:
        self.links, self.store = FakeLinks(name, everyone), FakeStore()
        membership: Any = SimpleNamespace(own=card(name), get=card)
        self.disks = Disks(RUN, cast("Any", self.links), membership, cast("Any", self.store))

    async def open(self, checkpoint: CheckpointName = CHECKPOINT) -> Any:
        return await self.disks._answer_checkpoint("q", AskCheckpoint(checkpoint))

    async def piece(self, number: int, checkpoint: CheckpointName = CHECKPOINT) -> Buffer:
        return (await self.disks._answer_chunk("q", AskCheckpointChunk(checkpoint, number))).data


def nodes(*names: str) -> list[Node]:
    everyone: dict[str, FakeLinks] = {}
    return [Node(name, everyone) for name in names]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", CHUNK)


# ------------------------------------------------------------------------------------------------- its own disk


def test_what_makes_no_sense_is_not_in_the_stock() -> None:
    async def main() -> None:
        (it,) = nodes("a")
        it.store.keep(1)
        it.store.keep(0, step="three")
        it.store.checkpoints[5, 0] = STATE, record(step=6).raw
        it.store.keep(2, record(step=7))
        it.store.keep(-1, record(step=8))
        it.store.keep(0, record(step=9))
        nine = CheckpointName(9, 0, record(step=9).state, state_root(STATE))
        assert await it.disks.checkpoints() == (on_disk(), nine)

    run_virtual(main())


def test_a_checkpoint_is_loaded_only_under_its_own_name() -> None:
    async def main() -> None:
        (it,) = nodes("a")
        assert await it.disks.load(CHECKPOINT) is None
        it.store.keep(1)
        assert await it.disks.load(CHECKPOINT) == (STATE, RECORD)
        assert await it.disks.load(dataclasses.replace(CHECKPOINT, state_hash=OTHER.state)) is None
        it.store.keep(1, step="three")
        assert await it.disks.load(CHECKPOINT) is None

    run_virtual(main())


def test_what_the_disk_does_not_take_is_given_out_of_memory() -> None:
    async def main() -> None:
        (it,) = nodes("a")
        it.disks.lend(CHECKPOINT, STATE, RECORD)
        assert await it.disks.load(CHECKPOINT) == (STATE, RECORD)
        await it.open()
        assert [bytes(await it.piece(number)) for number in range(3)] == [b"0123", b"4567", b"89"]
        assert it.store.loads == 0

    run_virtual(main())


# ------------------------------------------------------------------------------------------------- given to others


def test_it_gives_out_a_checkpoint_chunk_by_chunk() -> None:
    async def main() -> None:
        (it,) = nodes("a")
        it.store.keep(1)
        with pytest.raises(Refused, match="isn't given out here any more"):
            await it.piece(0)
        snapshot = await it.open()
        assert (snapshot.version, snapshot.nbytes, len(snapshot.hashes)) == (3, len(STATE), 3)
        assert [await it.piece(number) for number in range(3)] == [b"0123", b"4567", b"89"]
        for number in (-1, 3):
            with pytest.raises(OutOfRange, match="has no chunk"):
                await it.piece(number)

    run_virtual(main())


def test_who_asks_for_what_is_not_there_is_refused() -> None:
    async def main() -> None:
        (it,) = nodes("a")
        with pytest.raises(Refused, match="version 3 of stage 1 is not on this disk"):
            await it.open()
        assert not it.disks._opened

    run_virtual(main())


def test_many_who_ask_at_once_cost_one_reading_of_the_disk() -> None:
    async def main() -> None:
        (it,) = nodes("a")
        it.store.keep(1)
        first, *others = await asyncio.gather(*(it.open() for _ in range(3)))
        assert all(other is first for other in others)
        assert it.store.loads == 1

    run_virtual(main())


def test_of_many_checkpoints_those_that_were_asked_for_last_are_given_out() -> None:
    async def main() -> None:
        (it,) = nodes("a")
        made = [record(step=step) for step in range(1, OPENED_LIMIT + 2)]
        names = [CheckpointName(of.step, 0, of.state) for of in made]
        for of in made:
            it.store.keep(0, of)
        for checkpoint in names[:-1]:
            await it.open(checkpoint)
        await it.open(names[0])
        assert it.store.loads == OPENED_LIMIT, "it was remembered"
        await it.open(names[-1])
        assert await it.piece(0, names[0]) == b"0123"
        with pytest.raises(Refused):
            await it.piece(0, names[1])

    run_virtual(main())


@pytest.mark.parametrize("becomes", [None, b"9876543210"], ids=["it was pruned", "it was written anew"])
def test_a_checkpoint_that_is_no_more_what_it_was_is_not_given_out(becomes: bytes | None) -> None:
    async def main() -> None:
        (it,) = nodes("a")
        it.store.keep(1)
        await it.open()
        if becomes is None:
            it.store.checkpoints.clear()
        else:
            it.store.keep(1, state=becomes)
        with pytest.raises(Refused, match="is not on this disk any more"):
            await it.piece(0)
        with pytest.raises(Refused, match="isn't given out here"):
            await it.piece(0)

    run_virtual(main())


def test_only_so_many_chunks_are_read_at_once() -> None:
    async def main() -> None:
        (it,) = nodes("a")
        it.store.keep(1)
        await it.open()
        await asyncio.gather(*(it.piece(0) for _ in range(3 * CHUNKS_AT_ONCE)))
        assert it.store.most_at_once == CHUNKS_AT_ONCE

    run_virtual(main())


# ------------------------------------------------------------------------------------------------- other disks


def test_everyone_is_asked_for_its_stock_oneself_included() -> None:
    async def main() -> None:
        a, b = nodes("a", "b")
        b.store.keep(1)
        b.disks.has_data = False
        lists = await a.disks.ask_around(["a", "b", "gone"])
        assert lists == {"a": CheckpointList((), True, ((2, 0),)), "b": CheckpointList((on_disk(),), False, ((2, 0),))}
        assert [peer for peer, _ in a.links.asked] == ["b", "gone"]

    run_virtual(main())


def test_a_record_is_found_on_its_own_disk_or_on_anothers() -> None:
    async def main() -> None:
        a, b = nodes("a", "b")
        assert await a.disks.record_of(CHECKPOINT, ["a", "b"]) is None
        b.store.keep(1)
        assert await a.disks.record_of(CHECKPOINT, ["a", "b"]) == RECORD
        asked = len(a.links.asked)
        a.store.keep(1)
        assert await a.disks.record_of(CHECKPOINT, ["a", "b"]) == RECORD
        assert len(a.links.asked) == asked, "nobody need be asked"

    run_virtual(main())


def test_a_checkpoint_is_brought_from_whoever_has_it() -> None:
    async def main() -> None:
        a, b, c, _ = nodes("a", "b", "c", "d")
        for it in (b, c):
            it.store.keep(1)
        begun: list[Download] = []
        state, of = await a.disks.bring(CHECKPOINT, lambda: ["b", "c", "d"], MEMBERS, begun=begun.append)
        assert (bytes(state), of) == (STATE, RECORD)
        assert (begun[0].stage, sum(begun[0].given.values()), set(begun[0].given) <= {"b", "c"}) == (1, 3, True)
        asked = [peer for peer, ask in a.links.asked if isinstance(ask, AskCheckpoint)]
        assert (asked.count("b"), asked.count("c")) == (1, 1), "who has it isn't asked again whether it has"

    run_virtual(main())


def test_without_anyone_who_has_it_nothing_is_brought() -> None:
    async def main() -> None:
        a, *_ = nodes("a", "b")
        with pytest.raises(OutOfDonors, match="nobody gives version 3 of stage 1"):
            await a.disks.bring(CHECKPOINT, lambda: ["b"], MEMBERS)

    run_virtual(main())


def test_of_two_contents_the_one_that_more_peers_have_is_brought_and_only_from_them() -> None:
    async def main() -> None:
        a, b, c, d = nodes("a", "b", "c", "d")
        b.store.keep(1, state=b"other bytes")
        for it in (c, d):
            it.store.keep(1)
        begun: list[Download] = []
        state, _ = await a.disks.bring(CHECKPOINT, lambda: ["b", "c", "d"], MEMBERS, begun=begun.append)
        assert (bytes(state), set(begun[0].given) <= {"c", "d"}) == (STATE, True)
        assert a.disks.differing == (
            "of the checkpoint of stage 1 at version 3 b and c, d offer different states: it is taken from c, d"
        )
        assert not [peer for peer, ask in a.links.asked if isinstance(ask, AskCheckpointChunk) and peer == "b"]

    run_virtual(main())


@pytest.mark.parametrize(
    "changes",
    [{"nbytes": 0}, {"record": OTHER.raw}, {"version": 0}],
    ids=["it makes no sense", "of another history", "of the untrained version"],
)
def test_a_snapshot_of_something_else_is_passed_over(changes: dict[str, Any]) -> None:
    async def main() -> None:
        a, b, c = nodes("a", "b", "c")
        b.store.keep(1)
        snapshot = dataclasses.replace(await b.open(), **changes)

        async def lie(peer: str, ask: AskCheckpoint) -> Any:
            return snapshot

        b.links.handle(AskCheckpoint, lie)
        assert await a.disks.record_of(CHECKPOINT, ["b", "c"]) is None
        c.store.keep(1)
        assert await a.disks.record_of(CHECKPOINT, ["b", "c"]) == RECORD

    run_virtual(main())


def test_everyone_is_asked_but_only_so_many_at_once_and_nobody_once_it_is_found() -> None:
    async def main() -> None:
        names = [f"p{number}" for number in range(5 * ASKED_AT_ONCE)]
        a, *others = nodes("a", *names)
        others[2 * ASKED_AT_ONCE].store.keep(1)
        asked = most_at_once = 0
        for it in others:

            async def answer(peer: str, ask: AskCheckpoint, it: Node = it) -> Any:
                nonlocal asked, most_at_once
                asked += 1
                most_at_once = max(most_at_once, asked)
                try:
                    return await it.disks._answer_checkpoint(peer, ask)
                finally:
                    asked -= 1

            it.links.handle(AskCheckpoint, answer)
        assert await a.disks.record_of(CHECKPOINT, ["a", *names]) == RECORD
        assert most_at_once == ASKED_AT_ONCE
        assert 2 * ASKED_AT_ONCE < len(a.links.asked) <= 4 * ASKED_AT_ONCE
        assert [peer for peer, _ in a.links.asked] == names[: len(a.links.asked)]

    run_virtual(main())


def test_the_first_ones_are_asked_in_any_case_and_no_other_once_it_is_found() -> None:
    async def main() -> None:
        names = [f"p{number}" for number in range(ASKED_AT_ONCE + 2)]
        a, first, *others = nodes("a", *names)
        first.store.keep(1)
        for it in others:
            it.links.deaf = True
        assert await a.disks.record_of(CHECKPOINT, names) == RECORD
        assert [peer for peer, _ in a.links.asked] == names[:ASKED_AT_ONCE]

    run_virtual(main())


# ------------------------------------------------------------------------------------------------- that differ

LIE = b"other bytes"


def with_states(**states: bytes) -> list[Node]:
    """Peer "a", and others that have a checkpoint of one name with these bytes."""
    a, *others = nodes("a", *states)
    for it, state in zip(others, states.values(), strict=True):
        it.store.keep(1, state=state)
    return [a, *others]


def test_a_checkpoint_is_given_under_the_name_of_its_bytes_and_under_no_other() -> None:
    async def main() -> None:
        _, b = with_states(b=STATE)
        assert await b.disks.load(on_disk()) == (STATE, RECORD)
        assert (await b.open(on_disk())).nbytes == len(STATE)
        other = dataclasses.replace(CHECKPOINT, root=state_root(LIE))
        assert await b.disks.load(other) is None
        with pytest.raises(Refused, match="is not on this disk"):
            await b.open(other)

    run_virtual(main())


def test_strangers_with_other_bytes_do_not_count() -> None:
    async def main() -> None:
        a, *_ = with_states(b=LIE, c=LIE, d=STATE)
        state, _ = await a.disks.bring(CHECKPOINT, lambda: ["b", "c", "d"], ["a", "d"])
        assert bytes(state) == STATE
        assert await a.disks.settle(CHECKPOINT, ["b", "c", "d"], ["a", "d"]) == on_disk()

    run_virtual(main())


def test_of_two_that_differ_none_is_brought_until_a_third_one_is_there() -> None:
    async def main() -> None:
        a, b, c, d = nodes("a", "b", "c", "d")
        b.store.keep(1, state=LIE)
        c.store.keep(1)
        with pytest.raises(OutOfDonors, match="none is taken until more peers agree"):
            await a.disks.bring(CHECKPOINT, lambda: ["b", "c", "d"], MEMBERS)
        d.store.keep(1)
        state, _ = await a.disks.bring(CHECKPOINT, lambda: ["b", "c", "d"], MEMBERS)
        assert bytes(state) == STATE

    run_virtual(main())


def test_the_bytes_that_most_have_are_settled_upon_also_against_its_own_disk() -> None:
    async def main() -> None:
        a, *_ = with_states(b=STATE, c=STATE)
        a.store.keep(1, state=LIE)
        settled = await a.disks.settle(CHECKPOINT, ["b", "c", "gone"], MEMBERS)
        assert settled == on_disk()
        assert "a and b, c offer different states" in a.disks.differing
        assert await a.disks.load(settled) is None
        assert bytes((await a.disks.bring(settled, lambda: ["b", "c"], MEMBERS))[0]) == STATE

    run_virtual(main())


def test_only_the_bytes_of_that_very_checkpoint_are_settled_upon() -> None:
    """An older release doesn't name them, and a disk has others besides."""

    async def main() -> None:
        a, b, c, d = with_states(b=STATE, c=LIE, d=LIE)
        b.store.keep(0, state=LIE)
        b.store.keep(1, record(step=9), state=LIE)

        async def nameless(peer: str, ask: AskCheckpointList) -> CheckpointList:
            return CheckpointList((CHECKPOINT,), True, ())

        for it in (c, d):
            it.links.handle(AskCheckpointList, nameless)
        assert await a.disks.settle(CHECKPOINT, ["a", "b", "c", "d"], MEMBERS) == on_disk()
        assert [peer for peer, _ in a.links.asked] == ["b", "c", "d"], "its own disk is at hand"

    run_virtual(main())


def test_who_differs_is_logged_once_and_remembered_when_all_are_the_same_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        a, b, *_ = with_states(b=LIE, c=STATE, d=STATE)
        for _ in range(2):
            await a.disks.settle(CHECKPOINT, ["b", "c", "d"], MEMBERS)
        said = [it for it in caplog.messages if "b and c, d offer different states" in it]
        assert said == [a.disks.differing]
        b.store.keep(1)
        await a.disks.settle(CHECKPOINT, ["b", "c", "d"], MEMBERS)
        assert [a.disks.differing] == said

    run_virtual(main())


def test_where_nobody_can_tell_everyone_settles_upon_the_same_bytes() -> None:
    """A swarm that returns has nothing else to go on from."""

    async def main() -> None:
        a, b = with_states(b=STATE)
        a.store.keep(1, state=LIE)
        settled = await a.disks.settle(CHECKPOINT, ["b"], MEMBERS)
        assert settled == await b.disks.settle(CHECKPOINT, ["a"], MEMBERS)
        assert settled.root in (state_root(STATE), state_root(LIE))

    async def nobody() -> None:
        (a,) = nodes("a")
        assert await a.disks.settle(CHECKPOINT, [], MEMBERS) == CHECKPOINT

    run_virtual(main())
    run_virtual(nobody())
