"""Faults at logical points: the list is complete; each happens at its place, once, and before anything else."""

import asyncio
import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from swarmd.errors import PeerUnreachable
from swarmd.sim.faults import point_actions
from swarmd.sim.world.clock import run_virtual
from swarmd.sim.world.machine import MACHINE, Machine
from swarmd.sim.world.network import SimNetwork
from swarmd.sim.world.points import DROP, GROUPS, Points, all_points, step_of
from swarmd.sim.world.transport import SimTransport
from swarmd.sim.world.world import World
from swarmd.swarm import ports
from swarmd.swarm.history.record_format import write_record
from swarmd.swarm.wire import framing
from swarmd.swarm.wire.framing import to_frame
from swarmd.swarm.wire.messages.commit import Commit
from swarmd.swarm.wire.messages.common import Request
from swarmd.swarm.wire.messages.hop import Locate, Room
from swarmd.swarm.wire.messages.presence import AskPlace
from swarmd.values import Frame
from tests.sim.nodes import now
from tests.sim.toy import SHORT, check_agreement, check_exact, train
from tests.swarm.records import record

# ------------------------------------------------------------------------------------------------- the list


def test_every_request_is_in_the_list() -> None:
    """A new file of messages fails here until it is listed."""
    requests = [kind for group in GROUPS.values() for kind in group.requests()]
    assert sorted(requests) == sorted(it for it, cls in framing.KINDS.items() if issubclass(cls, Request))


def test_every_method_of_compute_is_in_the_list() -> None:
    methods = [name for name, it in vars(ports.Compute).items() if inspect.iscoroutinefunction(it)]
    assert sorted(method for group in GROUPS.values() for method in group.methods) == sorted(methods)


def test_what_writes_to_the_disk_is_in_the_list() -> None:
    told = ("damaged",)  # of what `list_checkpoints` has read
    writes = [name for name in vars(ports.Store) if not name.startswith("_") and name not in told]
    assert len(writes) == len([point for group in GROUPS.values() for point in group.disk])


def test_points_have_one_name_each() -> None:
    names = all_points()
    assert len(set(names)) == len(names)
    assert {"ask.Hop", "served.Plan", "begin.apply", "end.tail", "save", "asked.AskLease"} <= set(names)


def test_a_point_that_does_not_exist_cannot_be_planned() -> None:
    with pytest.raises(AssertionError, match=r"ask\.Gradient is none of the points"):
        Points().fail_at("a", 1, "ask.Gradient", lambda name: None)


def test_the_step_is_the_frames_own() -> None:
    assert step_of(to_frame(Locate(7, 3))) == 7
    assert step_of(to_frame(Commit(record(step=4).raw))) == 4
    assert step_of(to_frame(AskPlace(0, has_data=True))) is None
    assert step_of(to_frame(Commit(write_record({"step": "four"})))) is None
    assert step_of(to_frame(Commit(b"2{}"))) is None


# ------------------------------------------------------------------------------------------------- at bare nodes


@dataclass
class Pair:
    """Two machines whose network has points, without a world."""

    network: SimNetwork = field(default_factory=SimNetwork)
    seen: list[tuple[float, str, str]] = field(default_factory=list)
    handled: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.points = Points()
        self.a, self.b = self._node("a"), self._node("b")

    def _node(self, name: str) -> SimTransport:
        machine = Machine(name, self.points)
        machine.step = lambda: 5
        transport = self.network.transport(name, machine)
        transport.serve(self._handle)
        for other in "ab":
            transport.learn(other, ())
        return transport

    async def _handle(self, peer: str, frame: Frame) -> Frame:
        self.handled.append(now())
        return Frame("Ack", {})

    def fail_at(
        self, peer: str, step: int | None, point: str, strike: Callable[[str], object], *, skip: int = 0
    ) -> None:
        def of_the_world(name: str) -> object:
            assert MACHINE.get() is None, "a fault belongs to the world"
            return strike(name)

        self.points.fail_at(peer, step, point, of_the_world, skip=skip)

    def note(self, point: str) -> Callable[[str], None]:
        return lambda name: self.seen.append((now(), name, point))

    def crash(self, name: str) -> None:
        machine = self.network.transports[name].machine
        self.network.kill(name)
        machine.crash()

    def ask(self, step: int = 3, deadline_s: float | None = None) -> "asyncio.Task[Frame]":
        frame = to_frame(Locate(step, 0))
        task = self.a.machine.spawn(self.a.request("b", frame, deadline_s=deadline_s))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task


SIDES = ("ask", "serve", "served", "asked")


def play(test: Callable[[Pair], Any]) -> None:
    async def main() -> None:
        pair = Pair()
        await pair.a.machine.spawn(pair.a.connect("/sim/b"))
        await asyncio.sleep(1)
        await test(pair)

    run_virtual(main())


def test_a_request_passes_its_four_points_in_order() -> None:
    async def test(pair: Pair) -> None:
        for side in reversed(SIDES):
            pair.fail_at("*", 3, f"{side}.Locate", pair.note(side))
        await pair.ask(step=2)
        assert pair.seen == []
        await pair.ask()
        assert [(name, point) for _, name, point in pair.seen] == [
            ("a", "ask"),
            ("b", "serve"),
            ("b", "served"),
            ("a", "asked"),
        ]
        await pair.ask()
        assert len(pair.seen) == 4, "each happens once"
        assert pair.points.armed == []
        assert pair.points.fired == [(name, 3, f"{point}.Locate") for _, name, point in pair.seen]

    play(test)


def test_a_fault_may_wait_for_a_peer_for_any_step_and_for_its_turn() -> None:
    async def test(pair: Pair) -> None:
        pair.fail_at("b", 3, "ask.Locate", pair.note("never: b doesn't ask"))
        pair.fail_at("a", None, "ask.Locate", pair.note("third"), skip=2)
        for step in (8, 9):
            await pair.ask(step)
        assert pair.seen == []
        await pair.ask(10)
        assert [point for *_, point in pair.seen] == ["third"]

    play(test)


def test_what_has_no_step_is_of_the_peers_present_one() -> None:
    async def test(pair: Pair) -> None:
        pair.fail_at("a", 5, "ask.Room", pair.note("room"))
        await pair.a.machine.spawn(pair.a.request("b", to_frame(Room(1))))
        assert len(pair.seen) == 1

    play(test)


@pytest.mark.parametrize("side", SIDES)
def test_a_frame_dropped_at_a_point_is_never_missed_by_the_other(side: str) -> None:
    async def test(pair: Pair) -> None:
        for skip in range(2):
            pair.fail_at("*", 3, f"{side}.Locate", lambda name: DROP, skip=skip)
        with pytest.raises(TimeoutError):
            await pair.ask(deadline_s=5)
        endless = pair.ask()
        await asyncio.sleep(100)
        assert not endless.done()
        assert len(pair.handled) == (0 if side in ("ask", "serve") else 2)
        assert pair.b.machine.tasks() == []
        pair.network.cut("a", "b")
        with pytest.raises(PeerUnreachable):
            await endless

    play(test)


@pytest.mark.parametrize("side", SIDES)
def test_a_crash_at_a_point_comes_before_anything_else(side: str) -> None:
    async def test(pair: Pair) -> None:
        pair.fail_at("*", 3, f"{side}.Locate", pair.crash)
        question = pair.ask()
        await asyncio.sleep(1)
        assert question.done()
        assert question.cancelled() == (side in ("ask", "asked")), "the asker died, or its peer did"
        assert len(pair.handled) == (0 if side in ("ask", "serve") else 1)
        died = pair.a if side in ("ask", "asked") else pair.b
        assert (died.machine.state, died.machine.tasks()) == ("dead", [])
        assert len(pair.network.transports) == 1

    play(test)


@pytest.mark.parametrize("side", SIDES)
def test_a_pause_at_a_point_begins_there(side: str) -> None:
    async def test(pair: Pair) -> None:
        machine = (pair.a if side in ("ask", "asked") else pair.b).machine
        pair.fail_at("*", 3, f"{side}.Locate", lambda name: machine.pause())
        began, question = now(), pair.ask()
        await asyncio.sleep(10)
        assert len(pair.handled) == (0 if side in ("ask", "serve") else 1)
        assert not question.done()
        machine.resume()
        await question
        assert now() - began == pytest.approx(10, abs=0.1)
        assert len(pair.handled) == 1

    play(test)


# ------------------------------------------------------------------------------------------------- in a swarm

STEP = 3
CRASHES = [
    ("middle1", "begin.backward"),  # journey
    ("tail2", "end.tail"),
    ("middle2", "asked.Hop"),
    ("*", "serve.Plan"),  # round
    ("*", "begin.reduce"),
    ("*", "ask.Commit"),  # commit
    ("tail1", "begin.apply"),
    ("head2", "asked.AskLease"),  # lease
]


@pytest.mark.parametrize(("peer", "point"), CRASHES, ids=lambda word: str(word).replace("*", "anyone"))
def test_a_crash_at_a_point_costs_a_swarm_nothing(peer: str, point: str) -> None:
    async def events(world: World) -> None:
        world.fail_at(peer, STEP, point, point_actions.crash)

    world = train(dataclasses.replace(SHORT, steps=STEP + 1), events)
    assert [(step, where) for _, step, where in world.points.fired] == [(STEP, point)]
    assert len(world.dead) == 1
    check_agreement(world)
    check_exact(world)


def test_a_donor_may_crash_in_a_state_transfer() -> None:
    async def events(world: World) -> None:
        await world.until(lambda: all(it.peer.history.version >= 2 for it in world.peers.values()), 100)
        world.fail_at("*", None, "serve.AskChunk", point_actions.crash)
        await world.start("new", stage=1)

    world = train(SHORT, events)
    assert [where for *_, where in world.points.fired] == ["serve.AskChunk"]
    check_agreement(world)


def test_actions_that_take_time() -> None:
    async def events(world: World) -> None:
        world.fail_at("middle1", STEP, "end.forward", point_actions.pause_for(2))
        world.fail_at("tail1", STEP, "serve.Hop", point_actions.cut_from("middle2"))
        world.fail_at("head2", STEP, "ask.AskLease", point_actions.restart_after(1.0))
        world.fail_at("tail2", STEP, "begin.tail", point_actions.blocked_from("middle2", 1.0))

    world = train(SHORT, events)
    assert len(world.points.fired) == 4
    assert [it.name for it in world.past] == ["head2"]
    assert not world.network.walled
    assert not any(it.machine.paused for it in world.peers.values())
