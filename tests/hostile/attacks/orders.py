"""Attacks with orders: words that only a conductor, a round's leader or a mover may say, by someone who is none."""

import asyncio
from collections.abc import Callable

from swarmd.swarm.wire.messages.fields import BALLOT_LIMIT
from swarmd.values import Frame, PeerId
from tests.hostile import forged, words
from tests.hostile.attack import Act, Attack, Scene, repeated

HIGH = BALLOT_LIMIT - 1  # no honest conductor gets above that
LEAD_BYTES = 900_000  # in each word about who leads, where texts may be so long
LEADS = 80

Order = Callable[[Scene, words.Stand], Frame]


def ordered(order: Order) -> Act:
    """Says an order to everyone, by where each stands, for as long as the attack goes on."""

    async def act(scene: Scene) -> None:
        async def say(peer: PeerId, stand: words.Stand) -> None:
            await scene.attacker.ask(peer, order(scene, stand))

        await scene.each(say)

    return repeated(act)


def everything(scene: Scene) -> words.Ranges:
    """All microbatches of a step."""
    return ((0, scene.attacker.run.microbatches),)


def freeze(scene: Scene, stand: words.Stand) -> Frame:
    return words.freeze(stand, HIGH, scene.id)


def close(scene: Scene, stand: words.Stand) -> Frame:
    return words.close(stand, HIGH, scene.id)


def subtract(scene: Scene, stand: words.Stand) -> Frame:
    return words.subtract(stand, HIGH, scene.id, everything(scene))


def thaw(scene: Scene, stand: words.Stand) -> Frame:
    return words.ask_holdings(stand, HIGH, scene.id, spared=everything(scene))


def blame(scene: Scene, stand: words.Stand) -> Frame:
    return words.ask_holdings(stand, HIGH, scene.id, blame="gradient")


def revoke(scene: Scene, stand: words.Stand) -> Frame:
    return words.revoke(stand.step, everything(scene))


async def complete(scene: Scene) -> None:
    """With a card of the first stage, the attacker is taken for a head."""

    async def say(peer: PeerId, stand: words.Stand) -> None:
        await appear(scene, peer, stand, room=0)
        await scene.attacker.ask(peer, words.ask_lease(stand, 0, completed=everything(scene)))

    await scene.each(say)


def hold(scene: Scene, stand: words.Stand) -> Frame:
    return words.ask_lease(stand, 1000, held=everything(scene))


async def stay(scene: Scene) -> None:
    """A peer that has promised to stay can't go where it is needed. Nothing shows of that until it is."""

    async def say(peer: PeerId, stand: words.Stand) -> None:
        stage = scene.peers.index(peer)
        await appear(scene, peer, stand, stage, room=0)
        if await scene.attacker.ask(peer, words.ask_stay(stand, stage)) is not None:
            scene.won[:] = ["peers promise to stay"]

    await scene.each(say)


async def own_plan(scene: Scene) -> None:
    """A plan without contributors, whose one part the attacker averages."""
    run = scene.attacker.run
    sizes = [forged.gradient_size(run, stage) for stage in range(run.model.stages)]
    scene.attacker.answer("Contribution", lambda peer, _: words.averaged(noise[scene.peers.index(peer)]))
    noise = [forged.noise(size) for size in sizes]

    async def one(stage: int) -> None:
        stand = await scene.attacker.stand(scene.peers[stage])
        plan = words.plan(stand, HIGH, scene.id, sizes[stage], (scene.id,))
        await scene.attacker.ask(scene.peers[stage], plan)

    while True:
        await asyncio.gather(*(one(stage) for stage in range(run.model.stages)))


async def resend(scene: Scene) -> None:
    """Has peers of the stage before send everything to the attacker, who takes nothing."""

    async def say(peer: PeerId, stand: words.Stand) -> None:
        for stage in range(scene.attacker.run.model.stages):
            order = words.resend(stand, HIGH, scene.id, stage, everything(scene), (scene.id,))
            await scene.attacker.ask(peer, order)

    await scene.each(say)


async def take_over(scene: Scene) -> None:
    """With a card of the first stage, the attacker may be taken for a head."""

    async def say(peer: PeerId, stand: words.Stand) -> None:
        await appear(scene, peer, stand)
        await scene.attacker.ask(peer, words.took_over(stand, HIGH, scene.id, scene.attacker.incarnation))

    await scene.each(say)


async def appear(scene: Scene, peer: PeerId, stand: words.Stand, stage: int = 0, room: int = 64) -> None:
    """Shows a peer a card of the attacker that is at work, and as far as the peer is. Without room it gets no hops."""
    scene.attacker.says.update(state="serving", stage=stage, version=stand.version, record_hash=stand.record, room=room)
    await scene.attacker.ask(peer, words.announce(scene.attacker.card()))


async def fill_memory(scene: Scene) -> None:
    """Many words on who leads, each about another record."""
    stand = await scene.attacker.stand(scene.head)
    for number in range(LEADS):
        ahead = words.Stand(stand.version + 1, f"{number:08}" + "x" * LEAD_BYTES)
        word = words.took_over(ahead, 1 + number, scene.id, scene.attacker.incarnation)
        if await scene.attacker.ask(scene.head, word) is None:
            return  # it takes none of them


ATTACKS = (
    Attack("freeze", "freezes every sum under the highest ballot", ordered(freeze), defence="role:Freeze"),
    Attack(
        "thaw",
        "has rounds begin again, and names everything as done elsewhere",
        ordered(thaw),
        defence="role:AskHoldings",
    ),
    Attack("blame", "says that the step is to be skipped", ordered(blame), defence="role:AskHoldings"),
    Attack("close", "has every peer lead a round of its own", ordered(close), defence="role:Close"),
    Attack("subtract", "has every index taken out of every sum", ordered(subtract), defence="role:Subtract"),
    Attack("own-plan", "sends a plan of which it owns everything", own_plan, defence="role:Plan"),
    Attack("resend", "has everything sent to itself", repeated(resend), defence="role:Resend"),
    Attack(
        "took-over",
        "says that it leads the step, under the highest ballot",
        repeated(take_over),
        defence="role:TookOver",
    ),
    Attack(
        "took-over-memory",
        "says of 80 long names that it leads there",
        fill_memory,
        defence="took-over-memory,role:TookOver",
        ends=True,
        physical=True,
    ),
    Attack(
        "completed",
        "joins the first stage with a card, and reports everything as finished",
        repeated(complete),
        defence="leased",
    ),
    Attack("held", "asks for every lease, and says that it holds all", ordered(hold)),
    Attack("revoke", "tells heads that others have finished everything", ordered(revoke), defence="role:Revoke"),
    Attack("stay", "forbids everyone to move", repeated(stay), defence="role:AskStay"),
)
