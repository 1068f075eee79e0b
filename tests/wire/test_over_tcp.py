"""Conversations over real connections: what is refused keeps its kind, and costs no connection."""

import asyncio
from pathlib import Path

import pytest

from swarmd.errors import OutOfRange, Outvoted, UnknownKind
from swarmd.swarm.membership.table import Membership
from swarmd.swarm.wire.links import Links
from swarmd.swarm.wire.messages.commit import AskRecord, Commit
from swarmd.swarm.wire.messages.presence import Settings
from swarmd.swarm.wire.own_card import OwnCard, first_card
from swarmd.values import Frame
from tests.net.peers import Peer
from tests.swarm.records import record
from tests.swarm.wire.nodes import Lenient, hear

RECORD = record().raw


def links_of(peer: Peer) -> Links:
    own = OwnCard(first_card(peer.id, 1, (peer.address,), "cpu", ("fp32",), peer.transport.machine))
    membership = Membership(own)
    links = Links(peer.transport, own, membership, lambda: Settings({"name": "toy"}, "run"))
    links.judge_by(Lenient())
    links.on_card(lambda card: hear(membership, card))
    return links


async def answer(peer: str, ask: AskRecord) -> Commit:
    """A record, and for some steps none."""
    if ask.step == 2:
        raise Outvoted(4, 12)
    return Commit(RECORD)


async def test_refusals_keep_their_kind_and_the_connection_stays(tmp_path: Path) -> None:
    one, two = await Peer.start(tmp_path / "one.key"), await Peer.start(tmp_path / "two.key")
    try:
        asking, answering = await one.now(links_of, one), await two.now(links_of, two)
        answering.handle(AskRecord, answer)
        one.transport.learn(two.id, [two.address])
        assert await one.do(asking.ask(two.id, AskRecord(1), deadline_s=30.0)) == Commit(RECORD)
        with pytest.raises(Outvoted) as outvoted:
            await one.do(asking.ask(two.id, AskRecord(2), deadline_s=30.0))
        assert (outvoted.value.asked, outvoted.value.heard) == (4, 12)
        for frame, kind in ((Frame("Wave", {}), UnknownKind), (Frame("AskRecord", {"step": -1}), OutOfRange)):
            with pytest.raises(kind):
                await one.do(one.transport.request(two.id, frame, deadline_s=30.0))
        assert one.transport.connected() == (two.id,)
    finally:
        await asyncio.gather(one.stop(), two.stop())
