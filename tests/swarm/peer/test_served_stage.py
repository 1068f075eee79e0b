"""A stage at work: what takes part when, what a card or a lost peer means to it, and what ends with it."""

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from swarmd.config import LimitsConfig, fingerprint
from swarmd.sim.world.clock import run_virtual
from swarmd.sim.world.network import SimNetwork
from swarmd.swarm.fence import Fence
from swarmd.swarm.history.history import History
from swarmd.swarm.history.peer_context import PeerContext
from swarmd.swarm.membership.table import Membership
from swarmd.swarm.peer.served_stage import ServedStage
from swarmd.swarm.tasks import Tasks
from swarmd.swarm.wire.links import Links
from swarmd.swarm.wire.messages.presence import Settings
from swarmd.swarm.wire.messages.state import AskSnapshot
from swarmd.swarm.wire.own_card import OwnCard
from tests.swarm.cards import card
from tests.swarm.no_disk import NoDisk
from tests.swarm.peer.parts import Part
from tests.swarm.records import RUN

PARTS = ("admission", "custodian", "journeys", "rounds", "donor", "joiner", "handovers", "early_exit", "tasks")


class Rig:
    """Peer `p` with a stage, whose parts note what they are told."""

    def __init__(self, stage: int = 0) -> None:
        network = SimNetwork()
        self.own = OwnCard(card("p", stage=stage))
        self.membership = Membership(self.own)
        self.links = Links(network.transport("p"), self.own, self.membership, lambda: Settings({}, fingerprint(RUN)))
        self.history = History(RUN, self.links, cast("Any", NoDisk()))
        self.tasks = Tasks(Fence())
        limits, rng = LimitsConfig(), random.Random(0)
        context = PeerContext(RUN, limits, self.links, self.membership, self.history, self.tasks, rng)
        self.log: list[Any] = []
        self.compute: Any = SimpleNamespace(gradient_size=8, codecs=("fp32",))
        conductor: Any = SimpleNamespace(conductor_of=lambda step: "")
        data: Any = SimpleNamespace(digest="d") if stage == 0 else None
        joiner = cast("Any", Part("joiner", self.log))
        self.served = ServedStage(context, conductor, self.compute, data, stage, joiner)

    def note(self) -> list[Any]:
        """From now on its parts only note what they are told."""
        self.log.clear()
        for name in PARTS:
            setattr(self.served, name, Part(name, self.log, look_for_late=7.0))
        custody: Any = Part("custody", self.log)
        cast("Any", self.served.custodian).custody = custody
        return self.log

    def neighbour(self, **changes: Any) -> None:
        self.membership.hear(card("n", **{"stage": 1, **changes}), 0.0)


@pytest.mark.parametrize("stage", [0, 1])
def test_only_a_first_stage_has_a_head(stage: int) -> None:
    async def main() -> None:
        it = Rig(stage)
        assert (it.served.head is not None) == (stage == 0)
        assert it.log == [("joiner.opened", it.compute, it.served.committed.hold)]

    run_virtual(main())


@pytest.mark.parametrize(("stage", "tasks"), [(0, 2), (1, 1)])
def test_it_takes_part_from_when_its_state_is_here_once(stage: int, tasks: int) -> None:
    async def main() -> None:
        it = Rig(stage)
        log = it.note()
        it.served.serve()
        it.served.serve()
        assert [call[0] for call in log] == ["tasks.keep"] * tasks

    run_virtual(main())


@pytest.mark.parametrize(
    ("changes", "live", "heard"),
    [
        ({}, True, True),
        ({"stage": 0}, True, False),
        ({"stage": 2}, True, False),
        ({"room": 0}, True, False),
        ({}, False, False),
    ],
    ids=["room", "its own stage", "further on", "no room", "not to be reached"],
)
def test_room_at_the_next_stage_is_news(changes: dict[str, Any], live: bool, heard: bool) -> None:
    async def main() -> None:
        it = Rig()
        it.neighbour(**changes)
        if not live:
            it.membership.suspect("n")
        log = it.note()
        it.served.on_card(it.membership.members()["n"].card)
        assert log == ([("custodian.peer_has_room", "n")] if heard else [])

    run_virtual(main())


def test_a_sweep_looks_for_late_hops_and_state() -> None:
    async def main() -> None:
        it = Rig()
        log = it.note()
        assert it.served.sweep(5.0) == 7.0
        assert log == [("custodian.look_for_late", 5.0, it.served._is_stalled), ("donor.sweep", 5.0)]

    run_virtual(main())


def test_nothing_is_late_while_no_hop_can_be_answered() -> None:
    async def main() -> None:
        it = Rig()
        assert it.served._is_stalled(), "a stage is empty"
        it.neighbour()
        assert not it.served._is_stalled()
        it.neighbour(sequence=2, state="paused")
        assert it.served._is_stalled(), "a stage takes nothing"
        it.neighbour(sequence=3)
        it.served.sums.freeze(2)
        assert not it.served._is_stalled(), "that is a later step's"
        it.served.sums.freeze(1)
        assert it.served._is_stalled(), "the sum takes nothing in"

    run_virtual(main())


def test_what_happens_is_told_to_its_parts() -> None:
    async def main() -> None:
        it = Rig()
        log = it.note()
        told_to: list[tuple[Callable[[], None], list[Any]]] = [
            (lambda: it.served.suspect("n"), [("donor.lost", "n"), ("custody.disconnected", "n")]),
            (lambda: it.served.peer_lost("n", "h"), [("admission.peer_lost", "n"), ("custodian.peer_lost", "n", "h")]),
            (
                lambda: it.served.end_step(3),
                [("journeys.end_step", 3), ("rounds.end_step", 3), ("handovers.end_step",)],
            ),
            (
                it.served.abandon,
                [("journeys.abandon",), ("rounds.abandon",), ("handovers.end_step",), ("donor.forget",)],
            ),
        ]
        for happens, told in told_to:
            log.clear()
            happens()
            assert log == told

    run_virtual(main())


CLOSED = ["joiner.close", "journeys.close", "rounds.close", "handovers.close", "early_exit.close", "tasks.cancel"]


@pytest.mark.parametrize(("leaves", "answers"), [(True, False), (False, True)])
def test_who_leaves_answers_nothing_any_more(leaves: bool, answers: bool) -> None:
    async def main() -> None:
        it = Rig()
        log = it.note()
        if leaves:
            it.served.leave()
        else:
            it.served.close()
        assert [call[0] for call in log] == (["donor.close"] if leaves else []) + CLOSED
        assert (AskSnapshot in it.links._handlers) == answers

    run_virtual(main())
