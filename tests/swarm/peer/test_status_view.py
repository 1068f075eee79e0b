"""The status of a peer: what it waits for, why its device idles, how far it is."""

from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from swarmd.status import Wait
from swarmd.swarm.peer.status_view import StatusView
from swarmd.swarm.state.puller import Progress
from swarmd.values import HopId
from tests.swarm.cards import card


class Rig:
    """A peer of stage 1 of three that serves, with nothing to do."""

    def __init__(self) -> None:
        self.states = Counter[str]()
        self.running: HopId | None = None
        hops = SimpleNamespace(queues=lambda running: self.states)
        custodian = SimpleNamespace(retention=SimpleNamespace(nbytes=7))
        admission = SimpleNamespace(ailing=SimpleNamespace(warning=lambda now: ""))
        self.peer: Any = SimpleNamespace(
            state="serving",
            stage=1,
            entrance=SimpleNamespace(entries=("x",)),
            run_config=SimpleNamespace(model=SimpleNamespace(stages=3), microbatches=8, skips_limit=0),
            history=SimpleNamespace(origin=SimpleNamespace(resumes=False), finished=False, version=4, record=None),
            returns=SimpleNamespace(under_way=False, waiting="", broken_stage=lambda: None),
            places=SimpleNamespace(tried=""),
            joiner=SimpleNamespace(
                pulling=False, progress=Progress(1, 2, 1), downloaded={}, tried="q: no answer", differing=""
            ),
            arriving=SimpleNamespace(crossing=False, donors=lambda: ["q"]),
            membership=SimpleNamespace(
                missing_stages=lambda stages: [], stage=lambda stage: [card("q")], admitting=lambda stage: [card("q")]
            ),
            disks=SimpleNamespace(differing=""),
            ballots=SimpleNamespace(waiting=""),
            mover=SimpleNamespace(under_way=None, doing=""),
            drainage=None,
            ending=SimpleNamespace(wait=lambda: None),
            links=SimpleNamespace(
                transport=SimpleNamespace(addresses=lambda: ("/ip4/1.2.3.4",)),
                fence=SimpleNamespace(warning=lambda now: ""),
                role_refusals=SimpleNamespace(warning=lambda now: ""),
            ),
            journeys=SimpleNamespace(hops=hops, custodian=custodian, admission=admission),
            compute=SimpleNamespace(progress=lambda: SimpleNamespace(running=self.running)),
        )
        peer: Any = self.peer
        self.view = StatusView(peer)

    def moves(self, progress: Progress, doing: str) -> None:
        puller = SimpleNamespace(progress=progress, tried="q: busy", differing="")
        self.peer.mover = SimpleNamespace(under_way=SimpleNamespace(target=2, puller=puller), doing=doing)


def set_(path: str, value: Any) -> Callable[[Rig], None]:
    def change(it: Rig) -> None:
        *owners, name = path.split(".")
        owner = it.peer
        for each in owners:
            owner = getattr(owner, each)
        setattr(owner, name, value)

    return change


def both(*changes: Callable[[Rig], None]) -> Callable[[Rig], None]:
    def change(it: Rig) -> None:
        for each in changes:
            each(it)

    return change


LACKS = [
    (set_("history.origin.resumes", True), "other peers of this run, to agree on a checkpoint to resume from"),
    (both(set_("returns.under_way", True), set_("returns.waiting", "version 3 of stage 0")), "version 3 of stage 0"),
    (
        both(set_("state", "joining"), set_("stage", None)),
        "a peer of the run that answers and gives it a place",
    ),
    (
        both(set_("joiner.pulling", True), set_("arriving.donors", list)),
        "a live replica of stage 1, to take its state from",
    ),
    (set_("returns.broken_stage", lambda: 2), "the return to a checkpoint: the parameters of stage 2 came out not"),
    (set_("membership.missing_stages", lambda stages: [0, 2]), "a peer for stages 0, 2: start one with `swarmd start"),
    (
        both(set_("membership.missing_stages", lambda stages: [2]), set_("returns.waiting", "more disks")),
        "a peer for stage 2; and more disks: start one with `swarmd start --bootstrap /ip4/1.2.3.4`",
    ),
    (
        set_("membership.admitting", lambda stage: []),
        "a peer of stage 0 that takes work: all of them are paused or draining: `swarmctl",
    ),
    (set_("ballots.waiting", "a majority of the acceptors: 1 of 3"), "a majority of the acceptors: 1 of 3"),
]


@pytest.mark.parametrize(("change", "said"), LACKS)
def test_what_the_swarm_lacks(change: Callable[[Rig], None], said: str) -> None:
    it = Rig()
    change(it)
    assert it.view.waiting_for().startswith(said)
    assert it.view.queues().idle_because.startswith(said) or it.peer.state == "joining"


@pytest.mark.parametrize(
    "change",
    [
        lambda it: None,
        both(set_("state", "joining"), set_("membership.missing_stages", lambda stages: [2])),
        both(set_("history.finished", True), set_("membership.missing_stages", lambda stages: [2])),
    ],
    ids=["complete", "it joins itself", "the run is over"],
)
def test_when_the_swarm_lacks_nothing(change: Callable[[Rig], None]) -> None:
    it = Rig()
    change(it)
    assert it.view.lack() is None


OWN = [
    (set_("drainage", SimpleNamespace(doing="finishing 3")), Wait("the end of its drain", progress="finishing 3")),
    (
        lambda it: it.moves(Progress(), "asking for it"),
        Wait("its move to stage 2", progress="asking for it", tried="q: busy"),
    ),
    (
        lambda it: it.moves(Progress(1_000_000, 2_000_000, 3), "asking for it"),
        Wait("its move to stage 2", progress="1.0 MB of 2.0 MB from 3 donors", tried="q: busy"),
    ),
    (
        both(set_("joiner.pulling", True), set_("joiner.progress", Progress())),
        Wait("the state of stage 1", progress="1 replica asked", tried="q: no answer"),
    ),
    (
        both(set_("arriving.crossing", True), set_("joiner.progress", Progress())),
        Wait("the state of the history that won"),
    ),
    (set_("ending.wait", lambda: Wait("the others")), Wait("the others")),
]


@pytest.mark.parametrize(("change", "wait"), OWN)
def test_what_it_is_at_itself(change: Callable[[Rig], None], wait: Wait) -> None:
    it = Rig()
    change(it)
    assert it.view.waits() == [wait]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda it: None, "no microbatch has come"),
        (set_("state", "paused"), "this peer is paused: `swarmctl resume` lets it go on"),
        (set_("state", "draining"), "this peer is draining"),
        (lambda it: it.states.update(passed=3), "3 microbatches are with the next stage"),
        (lambda it: it.states.update(waiting=1), ""),
        (lambda it: setattr(it, "running", HopId(1, 2)), ""),
    ],
)
def test_why_the_device_idles(change: Callable[[Rig], None], said: str) -> None:
    it = Rig()
    change(it)
    assert it.view.queues().idle_because == said


def test_a_transfer_that_a_return_has_broken_off_is_not_shown() -> None:
    it = Rig()
    assert it.view.transfer() == Progress()
    it.peer.joiner.pulling = True
    assert it.view.transfer() == Progress(1, 2, 1)
    it.moves(Progress(5, 6, 1), "")
    assert it.view.transfer() == Progress(5, 6, 1), "of the stage that it moves to"


@pytest.mark.parametrize(("limit", "end"), [(0, ""), (9, "; the run ends when 9 in a row are")])
async def test_steps_that_are_skipped_in_a_row_are_a_warning(limit: int, end: str) -> None:
    it = Rig()
    it.peer.compute, it.peer.run_config.skips_limit = None, limit
    assert it.view.warnings() == []
    it.peer.history.record = SimpleNamespace(skips=3, why="a loss that is not finite")
    assert it.view.warnings() == [f"the last 3 steps were skipped: a loss that is not finite{end}"]
