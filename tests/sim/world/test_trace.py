"""The trace: bounded, readable, and a hash that tells any two runs apart that differ anywhere."""

from typing import Any

from swarmd.sim.world.clock import run_virtual
from swarmd.sim.world.network import SimNetwork
from swarmd.sim.world.trace import HASHED_AT_ONCE, Event, Trace
from swarmd.swarm.wire.framing import to_frame
from swarmd.swarm.wire.messages.hop import Hop
from swarmd.values import Encoded, Frame
from tests.sim.nodes import Node, connect

EVENTS = [
    (1.0, "a", "Hop", "b", 3, 1, ""),
    (2.0, "b", "Hop", "c", 3, 2, "again"),
    (3.0, "c", "crashes", "", -1, -1, ""),
    (4.0, "b", "Gradient", "a", 3, 1, ""),
    (5.0, "a", "Freeze", "b", 4, -1, ""),
]


def filled(events: list[tuple[Any, ...]] = EVENTS, **options: Any) -> Trace:
    trace = Trace(True, **options)
    for event in events:
        trace.add(*event)
    return trace


def test_lines_are_readable() -> None:
    assert filled().transcript().splitlines() == [
        "1.000 s  a -> b  Hop (3, 1)",
        "2.000 s  b -> c  Hop (3, 2) again",
        "3.000 s  c  crashes",
        "4.000 s  b -> a  Gradient (3, 1)",
        "5.000 s  a -> b  Freeze (4)",
    ]
    assert Event(6.0, "", "", "healed", -1, -1, "").line() == "6.000 s  the world  healed"


def test_the_last_events_of_something() -> None:
    def times(**wanted: Any) -> list[float]:
        return [event.time for event in filled().last(**wanted)]

    assert times() == [1, 2, 3, 4, 5]
    assert times(count=2) == [4, 5]
    assert times(step=3) == [1, 2, 4]
    assert times(step=3, index=1) == [1, 4]
    assert times(peer="c") == [2, 3], "also where it is the other one"


def test_every_event_is_in_the_hash_also_those_that_are_not_kept() -> None:
    many = [(float(number), "a", "Hop", "b", 1, number, "") for number in range(3 * HASHED_AT_ONCE)]
    whole = filled(many)
    assert filled(many, kept=1).hash == whole.hash
    assert len(filled(many, kept=10).events) == 10
    assert filled(many[1:]).hash != whole.hash
    assert filled([*many[:5], many[6], many[5], *many[7:]]).hash != whole.hash, "the order counts"
    halfway = Trace(True)
    for event in many:
        halfway.add(*event)
        if event[0] % 100 == 0:
            _ = halfway.hash
    assert halfway.hash == whole.hash, "looking changes nothing"


def test_off_it_keeps_nothing() -> None:
    trace = Trace()
    trace.add(1.0, "a", "Hop")
    assert (trace.count, len(trace.events), trace.hash) == (0, 0, Trace(True).hash)


def test_the_network_tells_what_came_and_what_was_held() -> None:
    hop = to_frame(
        Hop(3, 7, "r", again=True, evaluate=False, codec="fp32", tokens=b"", activation=Encoded("fp32", (0,), (b"",)))
    )

    async def main() -> list[str]:
        trace = Trace()
        network = SimNetwork(trace=trace)
        a, b = Node(network, "a"), Node(network, "b")
        await connect(a, b)
        trace.on = True
        b.handler = gradient
        network.clog("a", "b", 1)
        await a.machine.spawn(a.transport.request("b", hop))
        return trace.transcript().splitlines()

    async def gradient(peer: str, frame: Frame) -> Frame:
        return Frame("Gradient", {})

    assert run_virtual(main()) == [
        "1.010 s  a -> b  clogged 1 s",
        "1.012 s  a -> b  held Hop",
        "2.012 s  a -> b  Hop (3, 7) again",
        "2.014 s  b -> a  Gradient (3, 7)",
    ]
