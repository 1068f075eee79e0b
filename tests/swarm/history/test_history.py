"""A peer's history: what is applied, what is refused, what is fetched anew, and who hears of it."""

import asyncio
import dataclasses
from collections.abc import Callable, Coroutine, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from swarmd.errors import NonFinite, Refused, UnknownFormat
from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.history.history import REFUSED_SECONDS, History
from swarmd.swarm.history.listener import HistoryListener
from swarmd.swarm.history.record import Record, build_end, build_return, genesis_hash
from swarmd.swarm.history.record_format import hash_of
from swarmd.swarm.wire.messages.commit import AskRecord, Commit
from tests.swarm.fake_links import FakeLinks
from tests.swarm.records import RUN, record, report

LIVES = {"m0": 1, "m1": 2}


def following(count: int, **changes: Any) -> list[Record]:
    """The first records of a history, or of another one."""
    made: list[Record] = []
    for step in range(1, count + 1):
        parent = made[-1].hash if made else genesis_hash(RUN)
        made.append(record(report(0), report(1, **changes), step=step, parent=parent))
    return made


OURS, THEIRS = following(10), following(10, tokens=65)


def returning(to: Record, after: Record) -> Record:
    return build_return(to, (("m0",), ("m1",)), LIVES, after=after.hash, after_version=after.step, conductor="c")


class Disk:
    """The ledger of a store: steps, without those that are voided."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def append_ledger(self, line: dict[str, Any]) -> None:
        self.steps.append(line["step"])

    def void_ledger(self, version: int) -> None:
        self.steps = [step for step in self.steps if step <= version]


class Device:
    """Takes steps, or fails to."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.trouble: Exception | None = None

    async def apply(self, step: int, *, learning_rate: float, clip_factor: float) -> str:
        await asyncio.sleep(1)
        if self.trouble is not None:
            raise self.trouble
        self.steps.append(f"apply {step}")
        return f"digest {step}"

    async def skip(self, step: int) -> str:
        self.steps.append(f"skip {step}")
        return f"digest {step}"


class Node(HistoryListener):
    """A peer at a version, that notes what its history tells."""

    def __init__(self, name: str = "me", version: int = 0, everyone: dict[str, FakeLinks] | None = None) -> None:
        self.links, self.disk, self.device = FakeLinks(name, everyone if everyone is not None else {}), Disk(), Device()
        self.history = History(RUN, cast("Any", self.links), cast("Any", self.disk))
        self.has_gradient, self.misfit = True, ""
        self.history.confirm = self._confirm
        self.believes = True
        gradients = SimpleNamespace(gather=self._gather, objection=lambda it: self.misfit, bears_out=lambda it: False)
        self.history.attach(0, cast("Any", self.device), cast("Any", gradients))
        self.history.replace(OURS[version - 1] if version else None, "digest")
        self.told: list[tuple[Any, ...]] = []
        self.relayed: list[bytes] = []  # records
        self.history.listen(self)

    async def _confirm(self, it: Record, source: str, voters: Sequence[str]) -> bool:
        return self.believes

    async def _gather(self, it: Record) -> bool:
        return self.has_gradient

    def on_record(self, record: Record) -> None:
        self.told.append(("record", record.step))

    def on_replaced(self) -> None:
        self.told.append(("replaced",))

    def on_return(self, record: Record) -> None:
        self.told.append(("return", record.step))

    def on_foreign(self, peer: str) -> None:
        self.told.append(("foreign", peer))

    def on_unshown(self, peer: str) -> None:
        self.told.append(("unshown", peer))

    def on_relay(self, source: str, commit: Commit) -> None:
        self.told.append(("relay", source))
        self.relayed.append(bytes(commit.record))

    async def receive(self, it: Record, source: str = "other", **changes: Any) -> None:
        """A record comes from another peer."""
        await self.history._answer_commit(source, Commit(it.raw, **changes))


def virtual(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """A test that runs in virtual time."""

    def run() -> None:
        run_virtual(test())

    run.__name__ = test.__name__
    return run


def two(version: int, other: int) -> tuple[Node, Node]:
    everyone: dict[str, FakeLinks] = {}
    return Node("me", version, everyone), Node("other", other, everyone)


# ------------------------------------------------------------------------------------------------- further


@virtual
async def test_the_next_record_is_applied_written_and_told() -> None:
    node = Node()
    await node.receive(OURS[0])
    assert (node.history.version, node.history.digest, node.history.record) == (1, "digest 1", OURS[0])
    assert (node.device.steps, node.disk.steps, node.told) == (["apply 1"], [1], [("record", 1)])
    await node.receive(OURS[0])
    assert node.device.steps == ["apply 1"], "once"


@virtual
async def test_a_record_is_relayed_and_given_as_the_bytes_that_came() -> None:
    """Also one that this release would write otherwise."""
    node, raw = Node(), OURS[0].raw.replace(b",", b", ")
    commit = Commit(memoryview(bytearray(raw)), relay=True)
    await node.history._answer_commit("other", commit)
    assert (node.history.version, node.history.record_hash, node.relayed) == (1, hash_of(raw), [raw])
    assert (await node.history._answer_record("third", AskRecord(1))).record == raw
    after = record(step=2, parent=hash_of(raw))
    await node.receive(after)
    assert node.history.version == 2, "the next one follows the bytes"


@virtual
async def test_a_record_of_a_later_format_is_refused_and_nothing_is_given_up_for_it() -> None:
    node, other = two(0, 1)
    with pytest.raises(UnknownFormat, match="a record of format 2"):
        await node.history._answer_commit("other", Commit(b"2" + OURS[0].raw))

    async def later(peer: str, ask: AskRecord) -> Commit:
        return Commit(b"2" + OURS[0].raw)

    other.links.handle(AskRecord, later)
    for _ in range(3):
        await node.history.catch_up("other", 1)
        await asyncio.sleep(REFUSED_SECONDS)
    assert (node.history.version, node.history.behind, node.told) == (0, False, [])


@virtual
async def test_a_skipped_step_needs_no_gradient() -> None:
    node = Node()
    node.has_gradient = False
    await node.receive(record(report(0), report(1, finite=False), step=1, parent=genesis_hash(RUN)))
    assert (node.history.version, node.device.steps) == (1, ["skip 1"])


@virtual
async def test_what_is_missing_in_between_is_asked_of_whom_the_record_comes_from() -> None:
    node, other = two(0, 1)
    for it in OURS[1:4]:
        await other.history.adopt(it, "conductor")
    await node.receive(OURS[3])
    assert node.history.version == 4
    assert [ask for _, ask in node.links.asked] == [AskRecord(1), AskRecord(2), AskRecord(3)]


@virtual
async def test_a_record_is_applied_to_the_end_though_its_sender_is_lost() -> None:
    node = Node()
    coming = asyncio.create_task(node.receive(OURS[0]))
    await asyncio.sleep(0.5)
    coming.cancel()
    await asyncio.sleep(1)
    assert node.history.version == 1


@virtual
async def test_a_listener_that_fails_keeps_nothing_from_the_others() -> None:
    class Failing(HistoryListener):
        def on_record(self, record: Record) -> None:
            raise ZeroDivisionError

    node, late = Node(), Node("late")
    node.history.listen(Failing())
    node.history.listen(late)
    await node.receive(OURS[0])
    assert (late.told, node.links.fence.count) == ([("record", 1)], 1)


@virtual
async def test_a_record_that_others_should_hear_of_is_told_once() -> None:
    node = Node()
    await node.receive(OURS[0], relay=True)
    await node.receive(OURS[0], relay=True)
    assert node.told == [("relay", "other"), ("record", 1)]


# ------------------------------------------------------------------------------------------------- not further


@virtual
async def test_another_record_of_a_known_step_is_of_another_history() -> None:
    node = Node(version=2)
    with pytest.raises(Refused, match="another history: its record of step 2"):
        await node.receive(THEIRS[1])
    assert (node.history.record, node.told) == (OURS[1], [("foreign", "other")])


@virtual
async def test_a_record_with_another_parent_is_not_applied() -> None:
    node = Node(version=2)
    await node.receive(THEIRS[2])
    assert (node.history.version, node.told) == (2, [("foreign", "other")])


@virtual
async def test_a_record_whose_counts_or_norm_do_not_follow_is_refused() -> None:
    node = Node()
    await node.receive(dataclasses.replace(OURS[0], broke_at=5))
    assert node.history.version == 0
    node.misfit = "its norm isn't that of the gradient"
    assert node.history.objection(OURS[0]) == node.misfit
    await node.receive(OURS[0])
    assert node.history.version == 0


@virtual
async def test_whose_gradient_nobody_has_must_fetch_the_whole_state() -> None:
    node = Node()
    node.has_gradient = False
    await node.receive(OURS[0])
    assert (node.history.version, node.history.behind) == (0, True)
    node.history.replace(OURS[2], "digest")
    assert not node.history.behind


@pytest.mark.parametrize("trouble", [MemoryError(), ZeroDivisionError()], ids=repr)
def test_a_step_that_fails_half_way_leaves_no_state_to_go_on_from(trouble: Exception) -> None:
    async def main() -> None:
        node = Node()
        node.device.trouble = trouble
        await node.receive(OURS[0])
        assert (node.history.version, node.history.behind, node.disk.steps) == (0, True, [])

    run_virtual(main())


@virtual
async def test_parameters_that_came_out_not_finite_are_no_state_of_the_version() -> None:
    node = Node()
    node.device.trouble = NonFinite("a weight")
    await node.receive(OURS[0])
    history = node.history
    assert (history.version, history.broken, history.ready, history.digest) == (1, 1, False, "")
    assert (node.disk.steps, node.told) == ([], [("record", 1)])
    with pytest.raises(Refused, match="not finite at version 1"):
        await history.await_version(1, OURS[0].hash, "other", 1.0)


@virtual
async def test_while_the_state_comes_records_are_passed_on() -> None:
    node, ahead = Node(), list[tuple[int, str]]()
    node.history.fall_behind("told to")
    with node.history.passing_on(lambda it, source: ahead.append((it.step, source))):
        await node.receive(OURS[4])
        node.history.replace(OURS[3], "digest")
        await node.receive(OURS[4])
    assert (ahead, node.history.version) == ([(5, "other")], 5)


@virtual
async def test_who_is_refused_the_next_record_for_long_fetches_the_whole_state() -> None:
    node, other = two(2, 0)
    other.history.replace(OURS[7], "digest")
    await node.history.catch_up("other", 8)
    await asyncio.sleep(REFUSED_SECONDS - 1)
    await node.history.catch_up("other", 8)
    assert not node.history.behind
    await asyncio.sleep(2)
    await node.history.catch_up("other", 8)
    assert node.history.behind


@virtual
async def test_a_version_of_which_nobody_shows_the_record_makes_nobody_fall_behind() -> None:
    node, _ = two(2, 2)
    for _ in range(3):
        await node.history.catch_up("other", 1 << 40)
        await asyncio.sleep(REFUSED_SECONDS)
    assert not node.history.behind
    assert node.told == [("unshown", "other")] * 3, "it is asked no more for a while"


# ------------------------------------------------------------------------------------------------- elsewhere


@virtual
async def test_a_return_is_told_and_not_applied() -> None:
    node = Node(version=5)
    back = returning(OURS[2], OURS[4])
    await node.receive(back)
    await node.history.adopt(back, "other")
    assert (node.history.version, node.told) == (5, [("return", 3), ("return", 3)])


@virtual
async def test_after_a_return_the_step_it_leads_to_is_written_anew() -> None:
    node = Node(version=2)
    for it in OURS[2:5]:
        await node.receive(it)
    node.history.took_part(6)
    back = returning(OURS[2], OURS[4])
    node.history.replace(back, "digest")
    assert (node.history.version, node.history.record_hash, node.history.returned) == (3, back.hash, back)
    assert node.disk.steps == [3]
    assert not node.history.contributed(6), "what this peer knows of that step is void"
    assert node.told[-1] == ("replaced",)


@virtual
async def test_a_state_of_another_history_voids_what_came_after_the_fork() -> None:
    node = Node()
    for it in OURS[:5]:
        await node.receive(it)
    with node.history.crossing(2):
        node.history.replace(THEIRS[6], "digest", crossed_at=2)
        assert node.history.crosses_at is None, "it is of that history now"
    assert node.disk.steps == [1, 2]
    assert [node.history.chain.at(step) for step in (2, 3, 7)] == [OURS[1], None, THEIRS[6]]


@virtual
async def test_who_may_cross_gives_no_record() -> None:
    node = Node(version=2)
    assert await node.history._answer_record("other", AskRecord(2)) == Commit(OURS[1].raw)
    with pytest.raises(ZeroDivisionError), node.history.crossing(1):
        with pytest.raises(Refused, match="crosses to another history"):
            await node.history._answer_record("other", AskRecord(2))
        raise ZeroDivisionError
    assert await node.history._answer_record("other", AskRecord(2)) == Commit(OURS[1].raw)
    with pytest.raises(Refused, match="no record of step 3"):
        await node.history._answer_record("other", AskRecord(3))


# ------------------------------------------------------------------------------------------------- waiting


@pytest.mark.parametrize(
    ("version", "record_hash", "why"),
    [(1, "", "step 2 is over"), (2, THEIRS[1].hash, "another history"), (3, "", "still at version 2")],
)
def test_who_waits_for_a_version_that_does_not_come_is_refused(version: int, record_hash: str, why: str) -> None:
    async def main() -> None:
        node = Node(version=2)
        with pytest.raises(Refused, match=why):
            await node.history.await_version(version, record_hash, "nobody", 5.0)

    run_virtual(main())


@virtual
async def test_who_waits_for_a_version_asks_for_it() -> None:
    node, other = two(2, 2)
    await other.history.adopt(OURS[2], "conductor")
    await node.history.await_version(3, OURS[2].hash, "other", 5.0)
    assert node.history.version == 3


@virtual
async def test_who_waits_is_refused_once_this_peer_leaves_its_stage() -> None:
    node = Node(version=2)
    waiting = asyncio.create_task(node.history.await_version(3, OURS[2].hash, "nobody", 5.0))
    await asyncio.sleep(1)
    node.history.detach()
    with pytest.raises(Refused, match="has left its stage"):
        await waiting


@pytest.mark.parametrize("over", ["record", "replaced", "detached"])
def test_a_step_is_left_when_it_is_over_or_void(over: str) -> None:
    async def main() -> None:
        node = Node(version=2)
        leaving = asyncio.create_task(node.history.left(3))
        await asyncio.sleep(1)
        assert not leaving.done()
        if over == "record":
            await node.receive(OURS[2])
        elif over == "replaced":
            node.history.replace(OURS[1], "digest")
        else:
            node.history.detach()
        await asyncio.wait_for(leaving, 1)

    run_virtual(main())


# ------------------------------------------------------------------------------------------------- the end


@virtual
async def test_a_run_is_finished_at_its_last_version() -> None:
    node = Node(version=9)
    assert not node.history.finished
    await node.receive(OURS[9])
    assert (node.history.finished, node.history.failure) == (True, "")


@virtual
async def test_a_last_step_that_broke_is_a_failure() -> None:
    node = Node(version=9)
    node.device.trouble = NonFinite("a weight")
    await node.receive(OURS[9])
    assert node.history.finished
    assert node.history.failure == "the parameters of stage 0 came out not finite at step 10, the last one"


@virtual
async def test_a_run_ends_by_a_record_that_says_so() -> None:
    node = Node(version=3)
    end = build_end(OURS[2], LIVES, conductor="c", why="there is no use")
    node.history.end(end)
    assert (node.history.finished, node.history.failure, node.history.returned) == (True, "there is no use", end)


@virtual
async def test_too_many_skips_in_a_row_end_the_run() -> None:
    node = Node()
    node.history._run = dataclasses.replace(RUN, skips_limit=2)
    one = record(report(0), report(1, finite=False), step=1, parent=genesis_hash(RUN))
    await node.receive(one)
    assert not node.history.finished
    await node.receive(record(report(0), report(1, finite=False), step=2, parent=one.hash, before=one))
    assert node.history.failure.startswith("2 steps in a row were skipped, up to step 2 (skips_limit = 2)")


@virtual
async def test_who_took_part_in_the_last_two_rounds_may_speak_for_the_next() -> None:
    history = Node().history
    assert not history.contributed(0)
    history.origin.found("me", resumes=False)
    assert history.contributed(0)
    for step in (1, 2, 2, 3):
        history.took_part(step)
    assert [history.contributed(step) for step in (1, 2, 3, 4)] == [False, True, True, False]
