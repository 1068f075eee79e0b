"""A stage's state from several donors: who gives how much, who is given up, what is kept; a donor's snapshots; the
backlog of commits. Real links over a simulated network, a made-up state.
"""

import asyncio
import functools
import random
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from swarmd.config import LimitsConfig, ModelConfig, RunConfig, fingerprint
from swarmd.errors import Refused
from swarmd.sim.world.clock import run_virtual
from swarmd.sim.world.network import SimNetwork
from swarmd.swarm.history.history import History
from swarmd.swarm.history.record import Record, build_record, genesis_hash, record_to_plain
from swarmd.swarm.membership.table import Membership
from swarmd.swarm.signals import Signal
from swarmd.swarm.state import backlog as backlog_module
from swarmd.swarm.state import donor as donor_module
from swarmd.swarm.state import download as download_module
from swarmd.swarm.state import manifest as statesync
from swarmd.swarm.state.backlog import Backlog, Missed
from swarmd.swarm.state.donor import Donor
from swarmd.swarm.state.download import Download, OutOfDonors
from swarmd.swarm.state.joiner import Joiner
from swarmd.swarm.state.manifest import chunk_hash
from swarmd.swarm.wire.links import Links
from swarmd.swarm.wire.messages.commit import AskGradient, AskRecord, Commit, GradientPart
from swarmd.swarm.wire.messages.presence import Card, Settings
from swarmd.swarm.wire.messages.round import StageReport
from swarmd.swarm.wire.messages.state import AskChunk, AskSnapshot, Chunk, Snapshot
from swarmd.swarm.wire.own_card import OwnCard
from swarmd.values import Encoded, PeerId
from tests.swarm.cards import card

RUN = RunConfig(name="toy", model=ModelConfig(32, 8, 16, 2, 2, 1, 8), steps=60)
CHUNK = 1000
CHUNKS = 64
GRADIENT = 500  # bytes


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statesync, "CHUNK_BYTES", CHUNK)


def state_of(version: int) -> bytes:
    """A state; its first quarter never changes."""
    return random.Random(0).randbytes(CHUNK * CHUNKS // 4) + random.Random(version).randbytes(CHUNK * CHUNKS * 3 // 4)


def chain(length: int, holders: tuple[PeerId, ...] = ("a", "b")) -> list[Record]:
    """A history; the record of step n is at n - 1."""
    records: list[Record] = []
    for step in range(1, length + 1):
        parent = records[-1].hash if records else genesis_hash(RUN)
        report = StageReport(0, f"g{step}", 1.0, 64, 64.0, 8, 0, 0, 0, True, holders, holders)
        made = build_record(RUN, parent, step, [report], conductor="c", seconds=1.0, validation_loss=None)
        records.append(made)
    return records


CHAIN = chain(40)


class NoDisk:
    """What is written is gone."""

    def append_ledger(self, line: dict[str, Any]) -> None: ...

    def void_ledger(self, version: int) -> None: ...


@dataclass
class FakeCompute:
    """A device with nothing but a state."""

    version: int = 0
    export_seconds: float = 0.0
    exports: int = 0
    imported: list[bytes] = field(default_factory=list)
    gradient_size = 1_000_000

    async def export_state(self) -> bytes:
        self.exports += 1
        await asyncio.sleep(self.export_seconds)
        return state_of(self.version)

    async def import_state(self, state: Any) -> str:
        self.imported.append(bytes(state))
        self.version = next(version for version in range(60) if state_of(version) == bytes(state))
        return "digest"

    async def apply(self, step: int, **_: Any) -> str:
        self.version = step
        return "digest"


class Node:
    """A peer that has a stage: a donor, if it is at a version."""

    def __init__(self, network: SimNetwork, name: PeerId, version: int = 0, *, ready: bool = True) -> None:
        self.name, self.network = name, network
        own = OwnCard(card(name))
        self.membership = Membership(own)
        self.links = Links(network.transport(name), own, self.membership, lambda: Settings({}, fingerprint(RUN)))
        self.history = History(RUN, self.links, cast("Any", NoDisk()))
        self.compute = FakeCompute(version)
        self.donor = Donor(self.links.scope(), self.history, cast("Any", self.compute), 0)
        self.asked: list[AskChunk] = []
        self.at_once = self.most_at_once = 0
        if ready:
            self.history.replace(CHAIN[version - 1] if version else None, "digest")

    def commit(self) -> None:
        """One version further."""
        self.compute.version += 1
        self.history.replace(CHAIN[self.compute.version - 1], "digest")

    def chunks(self, give: Callable[[AskChunk, Callable[[], Awaitable[Chunk]]], Awaitable[Chunk]]) -> None:
        """Puts something between a question for a chunk and its answer."""

        async def answer(peer: PeerId, ask: AskChunk) -> Chunk:
            self.asked.append(ask)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            try:
                return await give(ask, lambda: self.donor._answer_chunk(peer, ask))
            finally:
                self.at_once -= 1

        self.links.handle(AskChunk, answer)

    def uplink(self, bytes_per_second: float) -> None:
        """All it gives goes through one thin wire."""
        wire = asyncio.Lock()

        async def give(ask: AskChunk, usual: Callable[[], Awaitable[Chunk]]) -> Chunk:
            async with wire:
                await asyncio.sleep(CHUNK / bytes_per_second)
            return await usual()

        self.chunks(give)

    def pause_after(self, chunks: int) -> None:
        """From some chunk on it says nothing more."""
        self.uplink(10 * CHUNK)
        inner = self.links._handlers[AskChunk]

        async def give(peer: PeerId, ask: AskChunk) -> Any:
            if len(self.asked) >= chunks:
                await asyncio.get_running_loop().create_future()
            return await inner(peer, ask)

        self.links.handle(AskChunk, give)


def meet(*nodes: Node) -> None:
    for one in nodes:
        for other in nodes:
            if one is not other:
                one.links.transport.learn(other.name, ())


async def manifest_of(joiner: Node, donor: Node) -> statesync.Manifest:
    snapshot = await joiner.links.ask(donor.name, AskSnapshot(0), deadline_s=10)
    return statesync.read_manifest(RUN, snapshot, donor.compute.gradient_size)


async def begin(joiner: Node, *donors: Node, liars: set[PeerId] | None = None) -> Download:
    """A download of what the first donor has, from whichever has it."""
    manifest = await manifest_of(joiner, donors[0])
    names = [donor.name for donor in donors]
    liars = set() if liars is None else liars
    return Download(RUN, joiner.links, 0, joiner.compute.gradient_size, manifest, lambda: names, liars)


async def seconds(work: Coroutine[Any, Any, Any]) -> float:
    began = asyncio.get_running_loop().time()
    await work
    return asyncio.get_running_loop().time() - began


def crowd(count: int, version: int = 5) -> tuple[Node, list[Node]]:
    network = SimNetwork()
    joiner = Node(network, "joiner", ready=False)
    donors: list[Node] = [Holder(network, name, version) for name in "abcdefgh"[:count]]
    meet(joiner, *donors)
    return joiner, donors


# ------------------------------------------------------------------------------------------------- chunks


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
        again = Download(RUN, joiner.links, 0, joiner.compute.gradient_size, manifest, lambda: ["a"], set())
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


# ------------------------------------------------------------------------------------------------- the whole transfer


def joiner_of(node: Node, donors: list[Node], held: list[int] | None = None, *, opened: bool = True) -> Joiner:
    def newest() -> Card:
        live = [donor for donor in donors if donor.network.transports.get(donor.name)]
        first = max(live, key=lambda donor: donor.history.version, default=node)
        return card(first.name, version=first.history.version)

    joiner = Joiner(RUN, LimitsConfig(), node.links, node.history, 0, newest)
    if opened:
        open_stage(joiner, node, held)
    return joiner


def open_stage(joiner: Joiner, node: Node, held: list[int] | None = None) -> None:
    joiner.opened(
        cast("Any", node.compute), lambda step, digest, parts: (held if held is not None else []).append(step)
    )


def names(donors: list[Node]) -> Callable[[], list[PeerId]]:
    return lambda: [donor.name for donor in donors if donor.name in donor.network.transports]


def test_a_state_that_comes_before_the_stage_is_open_is_loaded_when_it_is() -> None:
    async def main() -> None:
        joiner, donors = crowd(2)
        it = joiner_of(joiner, donors, opened=False)
        it.begin(names(donors))
        await asyncio.sleep(60)
        assert (it.progress.done, joiner.compute.imported) == (it.progress.total, [])
        assert it.pulling
        open_stage(it, joiner)
        assert await seconds(it.reach_version(names(donors), Signal())) < 0.1
        assert (joiner.compute.imported, joiner.history.version, it.pulling) == ([state_of(5)], 5, False)

    run_virtual(main())


def test_a_pull_that_nobody_waits_for_ends_and_leaves_nothing() -> None:
    async def main() -> None:
        joiner, donors = crowd(2)
        before = asyncio.all_tasks()
        it = joiner_of(joiner, donors, opened=False)
        it.begin(names(donors))
        await asyncio.sleep(60)
        await it.ended()
        assert asyncio.all_tasks() == before
        assert joiner.history._ahead is None

    run_virtual(main())


def test_all_donors_of_a_version_are_used_and_those_of_others_are_not() -> None:
    async def main() -> None:
        joiner, donors = crowd(4)
        donors[0].commit()
        for donor in donors:
            donor.uplink(4 * CHUNK)
        held: list[int] = []

        async def gather(record: Record) -> bool:
            assert record.step in held, "the backlog's gradients are handed over first"
            return True

        joiner.history.attach(0, cast("Any", joiner.compute), gather, lambda record: "")
        assert await (it := joiner_of(joiner, donors, held)).pull(names(donors)) is True
        assert set(it.downloaded) == set("bcd")
        assert joiner.compute.imported == [state_of(5)]
        assert joiner.history.version == 6, "what was committed meanwhile is applied"

    run_virtual(main())


def test_when_all_donors_of_a_version_are_gone_another_is_begun_with_the_chunks_that_fit() -> None:
    async def main() -> None:
        joiner, donors = crowd(2)
        late = Node(joiner.network, "late", 9)
        meet(joiner, *donors, late)
        for donor in (*donors, late):
            donor.uplink(4 * CHUNK)
        it = joiner_of(joiner, donors)
        there = [*donors]
        task = asyncio.create_task(it.pull(lambda: names(there)()))
        await asyncio.sleep(4.5)
        assert 0 < it.progress.done < it.progress.total == CHUNK * CHUNKS
        assert it.progress.donors == 2
        there.append(late)
        for donor in donors:
            donor.network.kill(donor.name)
        assert await task
        assert joiner.compute.imported == [state_of(9)]
        assert len(late.asked) < CHUNKS - 8, "the part that is the same in both was not fetched again"
        assert it.progress.total == 0

    run_virtual(main())


def test_an_old_state_of_ones_own_spares_what_has_not_changed() -> None:
    async def main() -> None:
        joiner, donors = crowd(1)
        joiner.compute.version = 3
        joiner.history.replace(CHAIN[2], "digest")
        joiner.history.fall_behind("told to")
        donors[0].uplink(100 * CHUNK)
        assert await joiner_of(joiner, donors).pull(names(donors))
        assert joiner.history.version == 5
        assert not joiner.history.behind
        assert len(donors[0].asked) == CHUNKS * 3 // 4

    run_virtual(main())


def test_who_missed_a_gradient_does_not_take_the_version_before_it_again() -> None:
    """A donor still has that pinned, and gives it to whoever asks for no version in particular."""

    async def main() -> None:
        joiner, donors = crowd(1, version=3)
        await donors[0].links.ask(donors[0].name, AskSnapshot(0), deadline_s=10)
        joiner.compute.version = 3
        joiner.history.replace(CHAIN[2], "digest")
        joiner.history.fall_behind("told to")
        for _ in range(2):
            donors[0].commit()
        assert await joiner_of(joiner, donors).pull(names(donors))
        assert joiner.history.version == 5

    run_virtual(main())


def test_the_loser_of_a_fork_takes_a_state_that_is_not_newer() -> None:
    async def main() -> None:
        joiner, donors = crowd(1)
        joiner.compute.version = 7
        joiner.history.replace(CHAIN[6], "digest")
        assert await joiner_of(joiner, donors).pull(names(donors))
        assert joiner.history.version == 5
        assert joiner.history.record_hash == CHAIN[4].hash
        with pytest.raises(Refused):
            await donors[0].links.ask("joiner", AskRecord(7), deadline_s=1)

    run_virtual(main())


def test_nobody_has_it() -> None:
    async def main() -> None:
        joiner, donors = crowd(2)
        for donor in donors:
            donor.history.fall_behind("told to")
        assert not await joiner_of(joiner, donors).pull(names(donors))

    run_virtual(main())


def test_a_donor_that_is_paused_before_it_answers_is_not_waited_for() -> None:
    async def main() -> None:
        joiner, donors = crowd(2)
        donors[0].compute.export_seconds = 1000.0
        it = joiner_of(joiner, donors)
        assert await seconds(it.pull(names(donors))) < 5
        assert set(it.downloaded) == {"b"}

    run_virtual(main())


# ------------------------------------------------------------------------------------------------- donors


def ask(joiner: Node, donor: Node, version: int = 0) -> Coroutine[Any, Any, Snapshot]:
    return joiner.links.ask(donor.name, AskSnapshot(0, version), deadline_s=100)


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
        joiner, (donor,) = crowd(1)

        async def touch(version: int) -> None:
            await joiner.links.ask("a", AskChunk(version, 0), deadline_s=1)

        for version in (5, 8):
            assert (await ask(joiner, donor)).version == version
            await touch(version)
            for _ in range(3):
                donor.commit()
        with pytest.raises(Refused, match="pulled"):
            await ask(joiner, donor)
        await asyncio.sleep(donor_module.PULLED_SECONDS - 1)
        await touch(8)
        await asyncio.sleep(2)
        assert (await ask(joiner, donor)).version == 11, "nobody pulls version 5 any more"
        await touch(8)
        with pytest.raises(Refused, match="not pinned"):
            await touch(5)
        donor.donor.sweep(asyncio.get_running_loop().time() + donor_module.PINNED_SECONDS + 1)
        with pytest.raises(Refused, match="not pinned"):
            await touch(8)

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


# ------------------------------------------------------------------------------------------------- the backlog


class Holder(Node):
    """A donor that keeps the last gradients."""

    kept = 4

    def __init__(self, network: SimNetwork, name: PeerId, version: int) -> None:
        super().__init__(network, name, version)
        self.links.handle(AskRecord, self.record)
        self.links.handle(AskGradient, self.gradient)

    async def record(self, peer: PeerId, ask: AskRecord) -> Commit:
        if ask.step > self.history.version:
            raise Refused("not yet")
        return Commit(record_to_plain(CHAIN[ask.step - 1]))

    async def gradient(self, peer: PeerId, ask: AskGradient) -> GradientPart:
        if not self.history.version - self.kept < ask.step <= self.history.version:
            raise Refused("not any more")
        return GradientPart(2, part_of(ask.step, ask.part))


def part_of(step: int, number: int) -> Encoded:
    return Encoded("fp32", (GRADIENT,), (bytes([step, number]) * (GRADIENT // 2),))


def holders(version: int = 5) -> tuple[Node, list[Node], Backlog]:
    network = SimNetwork()
    joiner = Node(network, "joiner", ready=False)
    nodes: list[Node] = [Holder(network, name, version) for name in "ab"]
    meet(joiner, *nodes)
    return joiner, nodes, backlog_of(joiner, nodes)


def backlog_of(joiner: Node, nodes: list[Node], limit: int = 1 << 20) -> Backlog:
    def newest() -> Card:
        first = max(nodes, key=lambda node: (node.history.version, node.name))
        return card(first.name, version=first.history.version)

    start = CHAIN[nodes[0].history.version - 1]
    return Backlog(RUN, joiner.links, 0, start, limit, newest, lambda: [node.name for node in nodes])


async def commit_many(nodes: list[Node], steps: int, pause: float = 3.0) -> None:
    for _ in range(steps):
        await asyncio.sleep(pause)
        for node in nodes:
            node.commit()


def test_many_more_steps_than_holders_keep_are_collected() -> None:
    async def main() -> None:
        _, nodes, backlog = holders()
        follow = asyncio.create_task(backlog.follow())
        await commit_many(nodes, 20)
        await asyncio.sleep(2)
        assert backlog.version == 25
        assert backlog.nbytes == 20 * 2 * GRADIENT
        held: list[tuple[int, str, tuple[Encoded, ...]]] = []
        backlog.hand_over(lambda *it: held.append(it))
        assert held[3] == (9, "g9", (part_of(9, 0), part_of(9, 1)))
        entry = await backlog.next(6)
        assert entry is not None
        assert entry.record == CHAIN[5]
        backlog.drop(24)
        assert backlog.nbytes == 2 * GRADIENT
        assert await backlog.next(26) is None
        follow.cancel()

    run_virtual(main())


def test_a_backlog_that_grows_too_large_is_given_up() -> None:
    async def main() -> None:
        joiner, nodes, _ = holders()
        backlog = backlog_of(joiner, nodes, limit=5 * 2 * GRADIENT)
        follow = asyncio.create_task(backlog.follow())
        await commit_many(nodes, 5)
        await asyncio.sleep(2)
        assert not follow.done()
        await commit_many(nodes, 1)
        with pytest.raises(Missed, match="backlog_bytes"):
            await follow
        assert backlog.nbytes == 0
        with pytest.raises(Missed):
            await backlog.next(6)

    run_virtual(main())


def test_a_gradient_that_nobody_has_any_more_is_missed() -> None:
    async def main() -> None:
        _, nodes, backlog = holders()
        await commit_many(nodes, 5, pause=0.01)
        with pytest.raises(Missed, match="step 6"):
            await backlog.follow()

    run_virtual(main())


@pytest.mark.parametrize("silent", ["a", "b"])
def test_a_silent_holder_costs_seconds(silent: str) -> None:
    async def main() -> None:
        _, nodes, backlog = holders()

        async def hang(peer: PeerId, ask: AskGradient) -> GradientPart:
            await asyncio.get_running_loop().create_future()
            raise AssertionError

        next(node for node in nodes if node.name == silent).links.handle(AskGradient, hang)
        follow = asyncio.create_task(backlog.follow())
        await commit_many(nodes, 1)
        assert await seconds(wait_for(backlog, 6)) < 2 * backlog_module.OTHER_FLOOR_SECONDS + 2
        follow.cancel()

    run_virtual(main())


async def wait_for(backlog: Backlog, step: int) -> None:
    while backlog.version < step:
        await asyncio.sleep(0.1)
    assert await backlog.next(step) is not None


def test_a_record_of_another_history_is_not_taken() -> None:
    async def main() -> None:
        _, nodes, backlog = holders()
        strange = chain(10, holders=("x",))

        async def lie(peer: PeerId, ask: AskRecord) -> Commit:
            return Commit(record_to_plain(strange[ask.step - 1]))

        nodes[1].links.handle(AskRecord, lie)  # the one that `newest` names
        follow = asyncio.create_task(backlog.follow())
        await commit_many(nodes, 2)
        await asyncio.sleep(3)
        assert backlog.version == 7, "the other one's records are used"
        entry = await backlog.next(6)
        assert entry is not None
        assert entry.record == CHAIN[5]
        follow.cancel()

    run_virtual(main())


def test_holders_that_cannot_be_reached_are_tried_again() -> None:
    async def main() -> None:
        _, nodes, backlog = holders()
        tries = 0

        async def flaky(peer: PeerId, ask: AskGradient, name: PeerId) -> GradientPart:
            nonlocal tries
            tries += 1
            if tries < 5:
                nodes[0].network.cut("joiner", name)
                await asyncio.sleep(1)
            return GradientPart(1, part_of(ask.step, ask.part))

        for node in nodes:
            node.links.handle(AskGradient, functools.partial(flaky, name=node.name))
        follow = asyncio.create_task(backlog.follow())
        await commit_many(nodes, 1)
        await wait_for(backlog, 6)
        assert tries >= 5
        follow.cancel()

    run_virtual(main())


def test_what_was_told_at_once_is_followed_at_once() -> None:
    async def main() -> None:
        _, nodes, backlog = holders()
        follow = asyncio.create_task(backlog.follow())
        await asyncio.sleep(0.5)
        nodes[0].commit()
        backlog.hear(CHAIN[5], "a")
        await asyncio.sleep(0.1)
        assert backlog.version == 6
        follow.cancel()

    run_virtual(main())
