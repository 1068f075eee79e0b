"""A peer's pauses, its drain, the end of its run, and the loss of its device."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from swarmd.errors import DeviceLost, Refused
from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.peer import peer as module
from swarmd.swarm.peer.drain import Drained
from swarmd.swarm.peer.peer import GOODBYE_SECONDS
from tests.swarm.cards import card
from tests.swarm.peer.parts import AsyncPart, Part
from tests.swarm.peer.peer_rig import (
    Rig,
    calls,
    try_it,
)
from tests.swarm.records import RUN

# ------------------------------------------------------------------------------------------------- going


@pytest.mark.parametrize(
    ("state", "served", "moves", "pauses"),
    [
        ("serving", True, False, True),
        ("waiting", True, False, True),
        ("paused", True, False, True),
        ("draining", True, False, False),
        ("joining", True, False, False),
        ("serving", False, False, False),
        ("serving", True, True, False),
    ],
)
def test_only_who_stays_where_it_serves_pauses(state: Any, served: bool, moves: bool, pauses: bool) -> None:
    async def events(it: Rig) -> None:
        it.own.become(state)
        it.peer.mover = cast("Any", SimpleNamespace(target=2 if moves else None))
        if not served:
            it.peer.switch.served = None
        if pauses:
            await it.peer.pause()
            assert calls(it) == [("admission.pause",), "paused"]
        else:
            with pytest.raises(Refused, match=f"this peer is {state}, or moves"):
                await it.peer.pause()
            assert calls(it) == []

    try_it(events)


@pytest.mark.parametrize(
    ("state", "served", "resumes"), [("paused", True, True), ("serving", True, False), ("paused", False, False)]
)
def test_only_who_is_paused_resumes(state: Any, served: bool, resumes: bool) -> None:
    async def events(it: Rig) -> None:
        it.own.become(state)
        if not served:
            it.peer.switch.served = None
        if resumes:
            await it.peer.resume()
            assert calls(it) == [("admission.resume",), "serving"]
        else:
            with pytest.raises(Refused, match="this peer is not paused"):
                await it.peer.resume()

    try_it(events)


@pytest.mark.parametrize(
    ("state", "served", "behind", "drains"),
    [
        ("serving", True, False, True),
        ("paused", True, False, True),
        ("joining", True, False, False),
        ("serving", False, False, False),
        ("serving", True, True, False),
    ],
)
def test_who_has_begun_something_ends_it_before_it_goes(
    state: Any, served: bool, behind: bool, drains: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def events(it: Rig) -> None:
        async def run() -> Drained:
            await asyncio.sleep(1)
            it.log.append(("drain.run",))
            return Drained(heir="h")

        monkeypatch.setattr(module, "Drain", lambda *given: SimpleNamespace(run=run))
        it.peer.mover = cast("Any", AsyncPart("mover", it.log))
        it.own.become(state)
        it.history.behind = behind
        if not served:
            it.peer.switch.served = None
        drained = await it.peer.drain(30.0)
        assert (drained.heir, it.own.card.heir, it.own.state) == (("h",) * 2 if drains else ("", "")) + ("left",)
        log = calls(it)
        assert log[0] == ("mover.drain",)
        assert (("drain.run",) in log) == drains
        assert (("admission.pause", True) in log) == drains
        if drains:
            assert log[1:4] == [("admission.pause", True), "draining", ("drain.run",)], "the others hear of it at once"
        assert (("admission.close",) in log) == served
        assert log[-1] == "left"

    try_it(events)


@pytest.mark.parametrize("finished", [True, False])
def test_at_the_end_a_drain_waits_until_the_final_states_are_elsewhere(finished: bool) -> None:
    async def events(it: Rig) -> None:
        async def drains() -> None:
            await asyncio.sleep(20.0)

        it.own.become("joining")
        it.peer.mover = cast("Any", SimpleNamespace(drain=drains))
        it.peer.ending = cast("Any", AsyncPart("ending", it.log))
        it.history.ended = cast("Any", SimpleNamespace(why="x" if finished else ""))
        await it.peer.drain(30.0)
        assert [call for call in calls(it) if call[0] == "ending.released"] == (
            [("ending.released", 10.0)] if finished else []
        )
        await it.peer.drain(10.0)
        assert [call for call in calls(it) if call[0] == "ending.released"] == (
            [("ending.released", 0.0)] if finished else []
        )

    try_it(events)


@pytest.mark.parametrize(("before", "now", "said"), [("", "", ""), ("h", "", "h"), ("h", "i", "i")])
def test_it_says_who_has_its_sum(before: str, now: str, said: str) -> None:
    async def events(it: Rig) -> None:
        it.own.card = card("p", stage=1, heir=before)
        await it.peer.leave(now)
        assert (it.own.card.state, it.own.card.heir) == ("left", said)
        assert calls(it) == [("admission.close",), "left"]

    try_it(events)


def test_one_whose_machine_will_be_gone_works_on() -> None:
    async def events(it: Rig) -> None:
        await it.peer.end_soon()
        assert (it.own.card.ending, it.own.card.state, calls(it)) == (True, "serving", ["serving"])

    try_it(events)


@pytest.mark.parametrize("failure", ["", "bad numbers"])
def test_it_serves_until_the_run_is_over(failure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Over(Exception):
        """The run has failed."""

    async def fail(*given: Any) -> None:
        raise Over

    async def events(it: Rig) -> None:
        monkeypatch.setattr(module, "fail", fail)
        it.peer.ending = cast("Any", AsyncPart("ending", it.log))
        it.peer.saving = cast("Any", AsyncPart("saving", it.log, save=True))
        it.own.become("joining")
        kept: list[Any] = []
        cast("Any", it.peer.tasks).keep = kept.append
        it.peer.arriving = cast("Any", SimpleNamespace(keep_up="keeps up"))
        serving = asyncio.ensure_future(it.peer._serve())
        await asyncio.sleep(1)
        assert calls(it) == [("figures.begin",), "serving", ("served.serve",)]
        assert kept == [it.peer.conductor.run, "keeps up", it.peer.balancer.run]
        if failure:
            it.history.ended = cast("Any", SimpleNamespace(why=failure))
        else:
            it.history.chain.version = RUN.steps
        it.history.changed.notify()
        if failure:
            with pytest.raises(Over):
                await serving
            assert calls(it) == ["finished"]
        else:
            await serving
            assert calls(it) == [("saving.save",), ("ending.run", True), "left"]

    try_it(events)


@pytest.mark.parametrize("heard", [True, False])
def test_who_loses_its_device_says_goodbye_and_everything_is_closed(heard: bool) -> None:
    async def main() -> None:
        it = Rig()
        it.peer.tasks = it.peer._context.tasks
        it.peer.gossip = it.peer.liveness = cast("Any", SimpleNamespace(run=lambda *given: asyncio.sleep(1000)))
        it.peer.switch = cast("Any", Part("switch", it.log))
        it.peer.switch.served = cast("Any", it.served)

        async def joins() -> None:
            await asyncio.sleep(2)
            it.lost = "the GPU fell off"
            if not heard:
                it.own.on_announce(lambda told: asyncio.sleep(1000))
            for _ in range(2):
                it.peer._sweep(0.0)
            await asyncio.sleep(1000)

        it.peer._join = joins  # type: ignore[method-assign]
        with pytest.raises(ExceptionGroup) as troubles:
            await it.peer.run()
        assert troubles.group_contains(DeviceLost, match="the GPU fell off")
        log = [call for call in calls(it) if call in (("mover.close",), ("switch.close",), "left")]
        assert log == [("mover.close",), ("switch.close",), *(["left"] if heard else [])]
        assert asyncio.get_running_loop().time() == (2 if heard else 2 + GOODBYE_SECONDS)

    run_virtual(main())
