"""Attacks with cards: about oneself, about others, about peers that don't exist."""

import asyncio
from collections.abc import Sequence

from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID

from swarmd.swarm.membership.table import SMALL_SWARM
from swarmd.swarm.wire.messages.fields import INCARNATION_LIMIT
from swarmd.values import PeerId
from tests.hostile import words
from tests.hostile.attack import Attack, Scene, repeated
from tests.hostile.victims import RUN

HIGHEST_LIFE = INCARNATION_LIMIT  # nobody gets above it
BEYOND = RUN.steps - 1  # a version that nobody has; later ones can't be, and count for nothing
SHOWN = 16  # cards in a summary that are looked at
INVENTED = 1500
CROWD = SMALL_SWARM + 16
DIALLED = 24  # peers that don't exist, each to be dialled; with them the swarm is still a small one
BLOATED = 1200  # peers of whom long cards are told
LONG = 60_000  # characters of a card's addresses, about
NAME = 300  # of one of them, without the peer that it names
PEER = 80  # of the rest of it
IN_A_CARD = 8  # addresses, at most, that are dialled
FALSE_STAGE = 900
GOSSIP_S = 1.0  # between two summaries of the same
DIALS_PER_S = 6.0  # to one address by three daemons, each of which spaces its own by a second: more is a harm


def topic(scene: Scene) -> str:
    return f"swarmd/{scene.attacker.fingerprint}/swarm"


async def gossip(scene: Scene, cards: Sequence[words.Card], stage: int) -> None:
    """Tells the whole swarm of a stage's peers."""
    for start in range(0, len(cards), SHOWN):
        await scene.attacker.publish(topic(scene), words.summary(stage, cards[start : start + SHOWN], len(cards)))
        await asyncio.sleep(0.02)


async def misplace(scene: Scene, **says: object) -> None:
    """Tells of the swarm's own peers, as if from a later life of theirs."""
    await scene.attacker.subscribe(topic(scene))
    while True:
        cards = [await scene.attacker.greet(peer) for peer in scene.peers]
        false = [words.changed(card, incarnation=HIGHEST_LIFE, addresses=[], **says) for card in cards]
        await gossip(scene, false, 0)
        await asyncio.sleep(GOSSIP_S)


async def move_away(scene: Scene) -> None:
    await misplace(scene, stage=FALSE_STAGE)


async def say_goodbye(scene: Scene) -> None:
    await misplace(scene, state="left")


async def be_far_ahead(scene: Scene) -> None:
    """A card of the attacker's own, of a version that doesn't exist."""
    scene.attacker.says.update(version=BEYOND, state="serving", stage=0, record_hash="ff" * 16)
    await scene.attacker.tell_all(scene.peers, words.announce(scene.attacker.card()))


async def be_fast(scene: Scene) -> None:
    """A card of the middle stage that is faster than anything, and answers no hop."""
    stand = await scene.attacker.stand(scene.head)
    scene.attacker.says.update(state="serving", stage=1, version=stand.version, record_hash=stand.record)
    scene.attacker.says.update(room=1 << 20, service_seconds=1e-9, microbatches_per_second=1e9, measured=True)
    await scene.attacker.tell_all(scene.peers, words.announce(scene.attacker.card()))


def invented() -> PeerId:
    """The id of nobody."""
    return str(ID.from_pubkey(create_new_key_pair().public_key).to_base58())


async def invent(scene: Scene, count: int, addresses: Sequence[str], **says: object) -> list[words.Card]:
    """Cards of peers that don't exist, as like as may be to the head's."""
    like = await scene.attacker.greet(scene.head)
    return [nobody(like, addresses, **says) for _ in range(count)]


def nobody(like: words.Card, addresses: Sequence[str], **says: object) -> words.Card:
    """The card of a peer that doesn't exist."""
    peer = invented()
    return words.changed(like, peer=peer, addresses=[f"{address}/p2p/{peer}" for address in addresses], **says)


async def sybil(scene: Scene) -> None:
    """Many peers that don't exist, all at work at the middle stage."""
    await scene.attacker.subscribe(topic(scene))
    cards = await invent(scene, INVENTED, ("/ip4/127.0.0.1/tcp/9",), stage=1, room=64)
    while True:
        await gossip(scene, cards, 1)
        await asyncio.sleep(GOSSIP_S)


async def crowd(scene: Scene) -> None:
    """Peers that don't exist and claim no work, so many that the swarm counts as a large one."""
    await scene.attacker.subscribe(topic(scene))
    cards = await invent(scene, CROWD, ("/ip4/127.0.0.1/tcp/9",), stage=1, state="joining")
    while True:
        await gossip(scene, cards, 1)
        cards = [words.changed(card, sequence=card["sequence"] + 1) for card in cards]
        await asyncio.sleep(GOSSIP_S)


async def bloat(scene: Scene) -> None:
    """Long cards of peers that don't exist."""
    await scene.attacker.subscribe(topic(scene))
    name = "x" * NAME
    long = [f"/dns4/{name}{number}/tcp/1" for number in range(LONG // (NAME + PEER))]
    like = await scene.attacker.greet(scene.head)
    for _ in range(BLOATED):
        card = nobody(like, long, stage=2, state="joining")
        await scene.attacker.publish(topic(scene), words.summary(2, [card], 1))
        await asyncio.sleep(0.01)


async def have_dialled(scene: Scene) -> None:
    """Has everyone dial an address of somebody else, who counts."""
    dialled, began = 0, asyncio.get_running_loop().time()

    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal dialled
        dialled += 1
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        port = server.sockets[0].getsockname()[1]
        await scene.attacker.subscribe(topic(scene))
        elsewhere = [f"/ip4/127.0.0.1/tcp/{number}" for number in range(1, IN_A_CARD)]
        cards = await invent(scene, DIALLED, (f"/ip4/127.0.0.1/tcp/{port}", *elsewhere), stage=1, state="joining")
        while True:
            await gossip(scene, cards, 1)
            cards = [words.changed(card, sequence=card["sequence"] + 1) for card in cards]
            rate = dialled / max(1.0, asyncio.get_running_loop().time() - began)
            scene.won[:] = [f"{rate:.0f} dials a second"] if rate > DIALS_PER_S else []
            await asyncio.sleep(GOSSIP_S)
    finally:
        server.close()


ATTACKS = (
    # This swarm is too quick to show what it would do: test_virtual.py has a slow one.
    Attack(
        "far-ahead",
        "announces a card of a version that nobody has, and no record",
        repeated(be_far_ahead, 1.0),
    ),
    Attack("moved-away", "gossips cards that put everyone at stage 900", move_away, defence="rumours"),
    Attack("goodbye", "gossips goodbyes of everyone", say_goodbye, defence="rumours"),
    Attack("fast", "announces that it is faster than anybody, and takes no hop", repeated(be_fast, 1.0)),
    Attack("sybil", "gossips 1,500 peers at the middle stage that don't exist", sybil),
    Attack("crowd", "gossips 64 newcomers to the middle stage that don't exist", crowd),
    Attack(
        "bloat",
        "gossips 1,200 cards of 60 kB",
        bloat,
        defence="gossip-pace",
        ends=True,
        physical=True,
    ),
    Attack("dials", "names an address of somebody else in 24 cards", have_dialled, defence="dial-pace", physical=True),
)
