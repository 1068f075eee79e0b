"""The decision of a step's record when conductors die, sleep or are two, and when the network is cut in two."""

import asyncio
import dataclasses
import functools
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import pytest

from swarmd.config import LimitsConfig
from swarmd.schedule import learning_rate_at
from swarmd.sim.world.device import Speed
from swarmd.sim.world.transport import SimTransport
from swarmd.sim.world.world import SimPeer, World
from swarmd.swarm.history.record import Record, build_return
from swarmd.swarm.wire.messages.commit import Accept, Commit, Prepare
from swarmd.swarm.wire.messages.presence import Card
from swarmd.swarm.wire.messages.round import Close
from swarmd.values import Frame, PeerId
from tests.sim.toy import (
    PAIRS,
    RUN,
    SHORT,
    check_agreement,
    check_exact,
    conductor_of,
    everyone_at,
    moment,
    step_of,
    total,
    train,
)
from tests.sim.waiting import calm, listening

STEP = 3  # in which something happens to its conductor
ONES = frozenset(name for name in PAIRS if name.endswith("1"))
TWOS = frozenset(name for name in PAIRS if name.endswith("2"))
QUICK = LimitsConfig(fork_timeout_s=2.0)
LONG = dataclasses.replace(RUN, steps=20)  # promise 3 is about so many
SLOW = Speed(0.1, 0.2)  # a step takes about two seconds: histories meet within a few of them


# ------------------------------------------------------------------------------------------------- what happens


def count_frames(world: World, kind: type[Any], step: int) -> list[tuple[PeerId, PeerId]]:
    """Collects asker and asked of each question of a kind about a step, once it is answered."""
    seen: list[tuple[PeerId, PeerId]] = []
    for transport in world.network.transports.values():
        answer = transport.answer

        async def watched(
            peer: PeerId, frame: Frame, transport: SimTransport = transport, answer: Any = answer
        ) -> Frame:
            reply: Frame = await answer(peer, frame)
            if frame.kind == kind.__name__ and frame.body.get("step") == step:
                seen.append((peer, transport.peer_id))
            return reply

        transport.answer = watched  # type: ignore[method-assign]
    return seen


class Stopped:
    """A machine that is stopped; its connections stay up, and what came meanwhile is handled when it goes on."""

    def __init__(self, world: World, name: PeerId) -> None:
        self._world, self._name = world, name
        world.pause(name)

    def resume(self) -> None:
        self._world.resume(self._name)


class Split:
    """The network is cut: connections between the groups break, and nobody reaches the other side."""

    def __init__(self, world: World, *groups: Iterable[PeerId]) -> None:
        self._world = world
        sides = [list(group) for group in groups]
        for side in sides:
            for one in side:
                for other in sorted({name for names in sides if names is not side for name in names}):
                    world.network.cut(one, other)
        world.network.partition(sides)

    def heal(self) -> None:
        self._world.network.heal()


def at(names: Iterable[PeerId], world: World, version: int) -> bool:
    return all(world.peers[name].peer.history.version >= version for name in names if name in world.peers)


def histories(world: World, version: int) -> set[str]:
    return {it.peer.history.chain.hash_at(version) for it in world.peers.values()} - {""}


# ------------------------------------------------------------------------------------------------- one conductor


async def before_it_prepares(world: World, victim: SimPeer) -> None:
    await moment(world, lambda: step_of(world) == STEP)


async def after_the_promises(world: World, victim: SimPeer) -> None:
    assert victim.peer.conductor is not None
    await moment(world, lambda: (victim.peer.conductor.desk.completed or 0) >= 1)


async def while_closing(world: World, victim: SimPeer) -> None:
    asked = count_frames(world, Close, STEP)
    await moment(world, lambda: bool(asked))


async def after_one_acceptor(world: World, victim: SimPeer) -> None:
    asked = count_frames(world, Accept, STEP)
    await moment(world, lambda: bool(asked))


async def after_the_decision(world: World, victim: SimPeer) -> None:
    await moment(world, lambda: any(it.peer.history.version >= STEP for it in world.peers.values()))


PHASES = [before_it_prepares, after_the_promises, while_closing, after_one_acceptor, after_the_decision]
Phase = Callable[[World, SimPeer], Awaitable[None]]


async def conductor_at(world: World, phase: Phase) -> SimPeer:
    await moment(world, lambda: step_of(world) == STEP)
    victim = conductor_of(world)
    await phase(world, victim)
    return victim


@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.__name__)
def test_a_conductor_dies(phase: Phase) -> None:
    async def events(world: World) -> None:
        world.crash((await conductor_at(world, phase)).name)

    world = train(SHORT, events)
    assert len(world.dead) == 1
    check_agreement(world)
    check_exact(world)


@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.__name__)
def test_a_conductor_sleeps_and_wakes_long_after(phase: Phase) -> None:
    """Others have led the step by then. Whatever it still says, nothing comes of it."""

    async def events(world: World) -> None:
        victim = await conductor_at(world, phase)
        stopped = Stopped(world, victim.name)
        others = [name for name in world.peers if name != victim.name]
        await moment(world, lambda: at(others, world, STEP + 1))
        stopped.resume()

    world = train(LONG, events)
    check_agreement(world, gaps=PAIRS)
    check_ended(world)


def check_ended(world: World) -> None:
    """One history, at its end, without a fork, and nothing lost in it."""
    assert len({it.peer.history.record_hash for it in world.peers.values()}) == 1
    assert not any(line["forked"] for it in world.peers.values() for line in it.store.ledger)
    assert total(world, "lost") == 0


def test_a_record_that_one_peer_only_has_seen_is_everyones() -> None:
    """The conductor tells a single peer and dies; the others decide the same record, or are told."""

    async def events(world: World) -> None:
        await moment(world, lambda: step_of(world) == STEP)
        victim = conductor_of(world)
        assert victim.peer.conductor is not None
        spread = victim.peer.conductor._distribution

        async def tell_one(record: Any, voters: Any) -> None:
            one = next(name for name in world.peers if name != victim.name)
            await world.peers[one].peer.history.adopt(record, victim.name)
            world.crash(victim.name)

        spread.spread = tell_one  # type: ignore[method-assign]
        await moment(world, lambda: bool(world.dead))

    world = train(SHORT, events)
    check_agreement(world)
    check_exact(world)


def test_a_record_is_everyones_though_most_of_those_who_decided_it_die_at_once() -> None:
    """One of the three that are left has seen it; no majority of its acceptors can be asked any more, and the next step
    has to be decided without one.
    """

    async def events(world: World) -> None:
        await moment(world, lambda: step_of(world) == STEP)
        victim = conductor_of(world)
        other = {"1": "2", "2": "1"}[victim.name[-1]]
        left = [name for name in world.peers if name.endswith(other)]

        async def tell_one(record: Any, voters: Any) -> None:
            await world.peers[left[0]].peer.history.adopt(record, victim.name)
            assert world.peers[left[0]].peer.history.version == STEP
            world.preempt([name for name in world.peers if name not in left])

        victim.peer.conductor._distribution.spread = tell_one  # type: ignore[method-assign]
        await moment(world, lambda: bool(world.dead))
        await moment(world, lambda: everyone_at(world, STEP))

    world = train(SHORT, events, limits=QUICK)
    assert len(world.dead) == 3
    check_agreement(world)
    check_exact(world)
    forked = {line["step"] for it in world.peers.values() for line in it.store.ledger if line["forked"]}
    assert forked == {STEP + 1}


def forge(record: Record, liar: PeerId, **changes: Any) -> Record:
    """A record of the next step, skipped, as one peer alone would like it to be."""
    stages = tuple(dataclasses.replace(entry, digest="", squared_norm=0.0) for entry in record.stages)
    made = dataclasses.replace(
        record,
        step=record.step + 1,
        parent=record.hash,
        stages=stages,
        loss=0.0,
        grad_norm=0.0,
        clip_factor=0.0,
        skipped=True,
        skips=record.skips + 1,
        learning_rate=learning_rate_at(SHORT.optimizer, record.step + 1, SHORT.steps),
    )
    return dataclasses.replace(made, ballot=(9, liar), conductor=liar, **changes)


@pytest.mark.parametrize("forked", [False, True])
@pytest.mark.parametrize("liar", ["newcomer", "middle2"])
def test_nobody_goes_on_by_what_one_peer_alone_says(liar: PeerId, forked: bool) -> None:
    """A stranger, or even an acceptor of the step, makes records up: of a step, and a return."""
    told: list[int] = []

    async def events(world: World) -> None:
        if liar == "newcomer":
            await world.start(liar, stage=1)
        it, others = world.peers[liar].peer, [name for name in world.peers if name != liar]
        for version in (2, 3):
            await moment(world, functools.partial(at, others, world, version))
            record = world.peers["head1"].peer.history.record
            assert record is not None
            lives = {name: other.peer.membership.own.incarnation for name, other in world.peers.items()}
            members = [entry.members for entry in record.stages]
            back = build_return(record, members, lives, after=record.hash, after_version=record.step, conductor=liar)
            back = dataclasses.replace(back, ballot=(9, liar), forked=forked, why="a lie")
            for made in (forge(record, liar, forked=forked), back):
                commit = Commit(made.raw, voters=tuple(PAIRS))
                answers = await it.links.tell_all(others, commit, deadline_s=20.0)
                told.append(made.step)
                assert answers == {}, "each refuses it, or is past the step"

    world = train(SHORT, events)
    assert len(told) == 4
    check_ended(world)
    assert not any(line["skipped"] for it in world.peers.values() for line in it.store.ledger)
    check_exact(world)


def test_two_conductors_at_once_decide_one_record() -> None:
    """One head doesn't see the other, and so both lead for a while."""

    async def events(world: World) -> None:
        await moment(world, lambda: step_of(world) == STEP)
        heads = [world.peers["head1"], world.peers["head2"]]
        for it, other in zip(heads, reversed(heads), strict=True):
            hide(it, other.name)
        await moment(world, lambda: step_of(world) > STEP)
        for it in heads:
            del it.peer.membership.hear  # who isn't known has no right to ask for what it lacks

    world = train(SHORT, events)
    check_agreement(world)
    assert not any(line["forked"] for it in world.peers.values() for line in it.store.ledger)


def hide(it: SimPeer, other: PeerId) -> None:
    """A peer is deaf to what it hears of another."""
    members = it.peer.membership
    hear = members.hear

    def deaf(card: Card, now: float, *, told: bool = False) -> bool:
        return card.peer != other and hear(card, now, told=told)

    members.hear = deaf  # type: ignore[method-assign]
    members._members.pop(other, None)
    members._change(other)


def test_a_leader_of_a_round_that_sleeps_is_replaced() -> None:
    async def events(world: World) -> None:
        await moment(world, lambda: step_of(world) == STEP)
        conductor = conductor_of(world).name
        asked = count_frames_begun(world, Close, STEP)
        await moment(world, lambda: any(leader != conductor for _, leader in asked))
        leader = next(leader for _, leader in asked if leader != conductor)
        Stopped(world, leader)
        await moment(world, lambda: at([name for name in world.peers if name != leader], world, STEP))
        assert asyncio.get_running_loop().time() < 120
        world.crash(leader)

    world = train(SHORT, events)
    check_agreement(world)


def count_frames_begun(world: World, kind: type[Any], step: int) -> list[tuple[PeerId, PeerId]]:
    """Collects those that were asked a question of a kind about a step, before they answer."""
    seen: list[tuple[PeerId, PeerId]] = []
    for transport in world.network.transports.values():
        answer = transport.answer

        async def watched(
            peer: PeerId, frame: Frame, transport: SimTransport = transport, answer: Any = answer
        ) -> Frame:
            if frame.kind == kind.__name__ and frame.body.get("step") == step:
                seen.append((peer, transport.peer_id))
            reply: Frame = await answer(peer, frame)
            return reply

        transport.answer = watched  # type: ignore[method-assign]
    return seen


def test_an_acceptor_that_wasnt_there_before_says_nothing() -> None:
    """A peer that came during the step before has no word in this one."""

    async def events(world: World) -> None:
        await moment(world, lambda: everyone_at(world, 2))
        new = await world.start("new", stage=1)
        asked = count_frames(world, Prepare, STEP + 1)
        await moment(world, lambda: everyone_at(world, STEP + 1))
        assert asked
        assert not new.peer.history.contributed(2)

    check_agreement(train(SHORT, events))


# ------------------------------------------------------------------------------------------------- forks


def test_two_halves_train_on_and_become_one_again() -> None:
    async def events(world: World) -> None:
        await moment(world, lambda: everyone_at(world, 3))
        split = Split(world, ONES, TWOS)
        await moment(world, lambda: at(PAIRS, world, 7))
        assert len(histories(world, 7)) == 2
        async with listening(world) as said:
            split.heal()
            await moment(world, lambda: len({it.peer.history.record_hash for it in world.peers.values()}) == 1)
        assert [what for what in said.waits if "the history that won" in what]
        await calm(world)

    world = train(LONG, events, limits=QUICK, speed=SLOW)
    check_agreement(world, gaps=PAIRS)
    check_exact(world)
    assert any(line["forked"] for it in world.peers.values() for line in it.store.ledger)
    last = [it.store.ledger[-1] for it in world.peers.values()]
    assert {line["step"] for line in last} == {LONG.steps}
    assert {member for line in last for member in line["members"]} == set(PAIRS), "all six are in it again"


def test_a_minority_with_every_stage_gives_way_to_the_majority() -> None:
    layout = {**PAIRS, "head3": 0, "middle3": 1}
    minority = TWOS

    async def events(world: World) -> None:
        await moment(world, lambda: everyone_at(world, 3))
        split = Split(world, layout.keys() - minority, minority)
        await moment(world, lambda: at(minority, world, 6))
        split.heal()

    world = train(LONG, events, layout=layout, limits=QUICK, speed=SLOW)
    check_agreement(world, gaps=minority)
    check_exact(world)
    assert not any(line["forked"] for it in world.peers.values() for line in it.store.ledger)


def test_a_side_without_every_stage_waits() -> None:
    lonely = {"head2"}

    async def events(world: World) -> None:
        await moment(world, lambda: everyone_at(world, 3))
        split = Split(world, PAIRS.keys() - lonely, lonely)
        await moment(world, lambda: at(PAIRS.keys() - lonely, world, 9))
        assert world.peers["head2"].peer.history.version < 5, "it is alone, and has no middle and no tail"
        split.heal()

    world = train(LONG, events, limits=QUICK, speed=SLOW)
    check_agreement(world, gaps=lonely)
    check_exact(world)
    assert not any(line["forked"] for it in world.peers.values() for line in it.store.ledger)


def test_who_loses_and_is_cut_off_half_way_is_whole_in_one_of_the_two() -> None:
    async def events(world: World) -> None:
        await moment(world, lambda: everyone_at(world, 3))
        split = Split(world, ONES, TWOS)
        await moment(world, lambda: at(PAIRS, world, 6))
        split.heal()
        await moment(world, lambda: any(it.peer.history.crosses_at is not None for it in world.peers.values()))
        again = Split(world, ONES, TWOS)
        before = {name: it.peer.history.version for name, it in world.peers.items()}
        await asyncio.sleep(15)
        assert any(it.peer.history.version > before[name] for name, it in world.peers.items())
        again.heal()
        split.heal()

    world = train(LONG, events, limits=QUICK, speed=SLOW)
    check_agreement(world, gaps=PAIRS)
    check_exact(world)


def test_the_status_says_how_many_acceptors_answer() -> None:
    said: set[str] = set()

    async def events(world: World) -> None:
        await moment(world, lambda: everyone_at(world, 3))
        split = Split(world, ONES, TWOS)

        def told() -> bool:
            said.update(it.view.waiting_for() for it in world.peers.values())
            return any("acceptors" in words for words in said)

        await moment(world, told)
        split.heal()

    check_agreement(train(RUN, events), gaps=PAIRS)
    assert any("3 of 6 answer" in words for words in said), said
