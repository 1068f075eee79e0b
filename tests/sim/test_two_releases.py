"""Two releases of one protocol train together: one lacks fields that the other has, and has fields, and a kind of
messages, that the other lacks.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest

from swarmd.errors import UnknownKind
from swarmd.sim.world.transport import SimTransport
from swarmd.sim.world.world import World
from swarmd.swarm.ports import Listener
from swarmd.swarm.wire.framing import KINDS
from swarmd.values import Frame
from tests.sim.toy import check_agreement, check_exact, everyone_at, moment
from tests.sim.world.worlds import traced

OTHERS = ("head2", "middle1", "tail2")
"""Peers of the other release."""

LACKS = {"next_seconds": "Beat", "horizon_s": "Lease", "memory_bytes": "Card", "spare": "Card", "spared": "AskHoldings"}
"""Fields that it doesn't have, each with a message that has it."""

MORE = {"later": [{"of": "another release"}]}


def translated(value: Any) -> Any:
    """What the other release says, or understands, of a body: it has neither these fields nor their names."""
    if isinstance(value, dict):
        return {name: translated(it) for name, it in value.items() if name not in LACKS}
    return [translated(it) for it in value] if isinstance(value, list) else value


def with_more(value: Any) -> Any:
    """The same with a field more, in messages within messages, too."""
    if isinstance(value, dict):
        return {**{name: with_more(it) for name, it in value.items()}, **MORE}
    return [with_more(it) for it in value] if isinstance(value, list) else value


def said(frame: Frame) -> Frame:
    return dataclasses.replace(frame, body=with_more(translated(frame.body)))


def understood(frame: Frame) -> Frame:
    return dataclasses.replace(frame, body=translated(frame.body))


@pytest.fixture
def _two_releases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some peers' frames are those of the other release, and they read others' as it would."""
    request, answer, publish, subscribe = (
        getattr(SimTransport, name) for name in ("request", "answer", "publish", "subscribe")
    )

    async def other_request(self: SimTransport, peer: str, frame: Frame, **options: Any) -> Frame:
        if self.peer_id not in OTHERS:
            return await request(self, peer, frame, **options)  # type: ignore[no-any-return]
        return understood(await request(self, peer, said(frame), **options))

    async def other_answer(self: SimTransport, peer: str, frame: Frame) -> Frame:
        if self.peer_id not in OTHERS:
            return await answer(self, peer, frame)  # type: ignore[no-any-return]
        return said(await answer(self, peer, understood(frame)))

    async def other_publish(self: SimTransport, topic: str, frame: Frame) -> None:
        await publish(self, topic, said(frame) if self.peer_id in OTHERS else frame)

    def other_subscribe(self: SimTransport, topic: str, listener: Listener) -> None:
        other = self.peer_id in OTHERS
        subscribe(self, topic, (lambda author, frame: listener(author, understood(frame))) if other else listener)

    for other in (other_request, other_answer, other_publish, other_subscribe):
        monkeypatch.setattr(SimTransport, other.__name__.removeprefix("other_"), other)


def test_what_the_other_release_lacks_has_defaults() -> None:
    for name, kind in LACKS.items():
        (field,) = (it for it in dataclasses.fields(KINDS[kind]) if it.name == name)
        assert field.default is not dataclasses.MISSING


async def wave(world: World, peers: Sequence[str]) -> None:
    """Asks, and gossips, in a kind that the others lack."""
    for name in peers:
        transport = world.peers[name].transport
        for other in transport.connected():
            with pytest.raises(UnknownKind, match="this release doesn't know messages of kind 'Wave'"):
                await transport.request(other, Frame("Wave", {"hand": 1}), deadline_s=10.0)
        for topic in list(transport.listeners):
            await transport.publish(topic, Frame("Wave", {"hand": 1}))


@pytest.mark.usefixtures("_two_releases")
def test_two_releases_train_together_and_neither_cuts_the_other() -> None:
    async def events(world: World) -> None:
        await moment(world, lambda: everyone_at(world, 1))
        await wave(world, OTHERS)
        world.crash("middle2")  # the other release alone has its stage, and gives the state to one of this release
        await world.start("middle3", stage=1)

    world = traced(events)
    check_agreement(world)
    check_exact(world)
    assert not [event for event in world.trace.events if event.what == "fault"]
