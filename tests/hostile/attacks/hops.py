"""Attacks on the work itself: hops and sums that are none, answers that spoil, and silence that looks like work."""

import asyncio
from collections import Counter

from swarmd.errors import Refused
from swarmd.values import Frame, PeerId
from tests.hostile import forged, words
from tests.hostile.attack import PACE_S, Attack, Scene, repeated
from tests.hostile.attacks.orders import appear

HUGE = 1e6  # each element of a sum that is handed over
LAST = 16 << 10  # elements of the last slice, at most


async def hand_over(scene: Scene) -> None:
    """Gives the middle stage a sum of the attacker's, with an index of the step that comes late."""
    size = forged.gradient_size(scene.attacker.run, 1)
    border = max(0, size - LAST)
    slices = [(start, stop) for start, stop in ((0, border), (border, size)) if stop > start]
    indices = ((scene.attacker.run.microbatches - 1, scene.attacker.run.microbatches),)
    taken = 0
    while True:
        stand = await scene.attacker.stand(scene.peers[1])
        await appear(scene, scene.peers[1], stand, stage=1, room=0)
        for start, stop in slices:
            message = words.hand_over(stand, 1, start, forged.constant(stop - start, HUGE), indices)
            answer = await scene.attacker.ask(scene.peers[1], message, urgency="bulk")
            taken += words.is_taken_over(answer)
        scene.won[:] = [f"{taken} sums taken over"] if taken else []
        await asyncio.sleep(PACE_S)


async def forge_hops(scene: Scene) -> None:
    """Sends the tail noise in the name of a step's microbatches."""
    tail, run = scene.peers[2], scene.attacker.run
    stand = await scene.attacker.stand(tail)
    await appear(scene, tail, stand, stage=1, room=0)

    async def one(index: int) -> None:
        hop = words.hop(stand, index, forged.random_tokens(run), forged.random_activation(run))
        await scene.attacker.ask(tail, hop, urgency="hop")

    await asyncio.gather(*(one(index) for index in range(run.microbatches)))
    trained = scene.attacker.heard["Hop: Gradient"]
    scene.won[:] = [f"{trained} forged hops trained"] if trained else []


async def evaluate(scene: Scene) -> None:
    """Has the tail evaluate noise, which is not admitted as training is."""
    tail, run = scene.peers[2], scene.attacker.run
    stand = await scene.attacker.stand(tail)
    await appear(scene, tail, stand, stage=1, room=0)
    hop = words.hop(stand, 0, forged.random_tokens(run), forged.random_activation(run), evaluate=True)
    await asyncio.gather(*(scene.attacker.ask(tail, hop, urgency="hop") for _ in range(64)))


async def keep_up(scene: Scene, **says: object) -> None:
    """Shows everyone a card of the last stage that is as far as they are, again and again."""
    scene.attacker.says.update(says)

    async def say(peer: PeerId, stand: words.Stand) -> None:
        await appear(scene, peer, stand, stage=2)

    await scene.each(say)


async def spoil(scene: Scene) -> None:
    """Takes hops for the last stage, and says of each that it isn't finite."""
    scene.attacker.answer("Hop", lambda *_: words.not_finite())
    scene.attacker.answer("Locate", lambda *_: words.located(here=False))
    await keep_up(scene, service_seconds=1e-4, microbatches_per_second=1e4)


async def hoard(scene: Scene) -> None:
    """Takes hops for the last stage, beats for them, and never answers."""
    held: dict[PeerId, set[tuple[int, int]]] = {}
    count = Counter[PeerId]()

    async def take(peer: PeerId, frame: Frame) -> Frame:
        held.setdefault(peer, set()).add(words.hop_in(frame))
        await asyncio.Event().wait()
        raise Refused("never")

    scene.attacker.answer("Hop", take)
    scene.attacker.answer("Locate", lambda *_: words.located(here=False))
    while True:
        await keep_up(scene, service_seconds=1e-4, microbatches_per_second=1e4)
        for peer, hops in list(held.items()):
            count[peer] += 1
            await scene.attacker.ask(peer, words.beat(sorted(hops)[-64:], count[peer], 1e9, 1e9))
        await asyncio.sleep(1.0)


async def cancel(scene: Scene) -> None:
    """Cancels the hops of others."""

    async def say(peer: PeerId, stand: words.Stand) -> None:
        hops = [(stand.step, index) for index in range(scene.attacker.run.microbatches)]
        await scene.attacker.ask(peer, words.cancel(hops))

    await scene.each(say)


async def beat(scene: Scene) -> None:
    """Beats for the hops of others, as if they hung."""

    async def say(peer: PeerId, stand: words.Stand) -> None:
        hops = [(stand.step, index) for index in range(scene.attacker.run.microbatches)]
        await scene.attacker.ask(peer, words.beat(hops, 1, 0.0, 1e9))

    await scene.each(say)


async def read(scene: Scene) -> None:
    """Asks replicas for their stage's weights."""
    for stage, peer in enumerate(scene.peers[:3]):
        answer = await scene.attacker.ask(peer, words.ask_snapshot(stage))
        await scene.attacker.ask(peer, words.ask_checkpoints())
        if answer is not None:
            scene.won[:] = ["the weights are read"]


ATTACKS = (
    Attack("hand-over", "hands a constant over as a leaving peer's sum", hand_over, defence="role:HandOver"),
    Attack(
        "forged-hops", "sends the tail noise as hops of the step", repeated(forge_hops), defence="role:Hop,given-hop"
    ),
    Attack("evaluate", "has the tail evaluate 64 microbatches at once", repeated(evaluate)),
    Attack(
        "not-finite",
        "joins the last stage with a card, and answers that nothing is finite",
        repeated(spoil, 1.0),
        defence="second-opinion",
    ),
    Attack("hoard", "takes hops, beats for them, and never answers", hoard, defence="unanswered", minutes=True),
    Attack("cancel", "cancels hops that it never sent", repeated(cancel)),
    Attack("beat", "beats for hops that others hold", repeated(beat)),
    Attack(
        "read-weights",
        "asks for the weights",
        read,
        open="there is no invitation: whoever greets is of the run",
        ends=True,
    ),
)
