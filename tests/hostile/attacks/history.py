"""Attacks on what is decided: records, gradients, returns, ballots, by someone who takes part in nothing."""

import asyncio

from swarmd.chunks import CHUNK_BYTES
from swarmd.swarm.history.record import Record
from swarmd.swarm.history.record_codec import record_from_raw
from swarmd.swarm.wire.messages.fields import BALLOT_LIMIT
from swarmd.values import Frame, PeerId
from tests.hostile import forged, words
from tests.hostile.attack import PACE_S, Attack, Scene, repeated
from tests.hostile.attacks.orders import appear


async def newest(scene: Scene) -> Record | None:
    """The record that the head applied last."""
    stand = await scene.attacker.stand(scene.head)
    answer = await scene.attacker.ask(scene.head, words.ask_record(stand.version))
    return None if answer is None else record_from_raw(scene.attacker.run, words.record_in(answer))


async def commit(scene: Scene, record: Record) -> bool:
    """Tells everyone a record, as one at work, and says that all have accepted it. True if everyone has taken it."""
    scene.forged.add(record.hash)
    await scene.each(lambda peer, stand: appear(scene, peer, stand, room=0))
    answers = await scene.attacker.tell_all(scene.peers, words.commit(record.raw, scene.peers))
    return len(answers) == len(scene.peers)


async def skip_steps(scene: Scene) -> None:
    base = await newest(scene)
    while base is not None and base.step < scene.attacker.run.steps:
        made = forged.skipped_step(scene.attacker.run, base, scene.id)
        base = made if await commit(scene, made) else None
        await asyncio.sleep(PACE_S)


async def relayed(scene: Scene) -> None:
    """One peer is to tell the others."""
    base = await newest(scene)
    if base is not None:
        made = forged.skipped_step(scene.attacker.run, base, scene.id)
        scene.forged.add(made.hash)
        await appear(scene, scene.head, await scene.attacker.stand(scene.head), room=0)
        await scene.attacker.ask(scene.head, words.commit(made.raw, scene.peers, relay=True))


async def own_gradient(scene: Scene, *, clipped: bool) -> None:
    made = forged.gradients(scene.attacker.run)
    parts = {it.digest: it.data for it in made}
    scene.attacker.answer("AskGradient", lambda _, ask: words.gradient_part(1, parts[ask.body["digest"]]))
    while True:
        if (base := await newest(scene)) is not None:
            record = forged.step_of(scene.attacker.run, base, scene.id, made, clipped=clipped)
            await commit(scene, record)
        await asyncio.sleep(PACE_S)


async def own_state(scene: Scene) -> None:
    run = scene.attacker.run
    states = [forged.zero_state(run, stage) for stage in range(run.model.stages)]
    base = await newest(scene)
    if base is None:
        return
    lives = [(await scene.attacker.greet(peer))["incarnation"] for peer in scene.peers]
    record = forged.return_to(base, scene.peers, lives, scene.id)

    def manifest(_: PeerId, ask: Frame) -> Frame:
        state = states[words.wanted_checkpoint(ask)[0]]
        return words.snapshot(record.step, record.raw, len(state.data), CHUNK_BYTES, state.hashes())

    def piece(_: PeerId, ask: Frame) -> Frame:
        stage, number = words.wanted_checkpoint(ask)
        return words.chunk(states[stage].chunks()[number])

    scene.attacker.answer("AskCheckpoint", manifest)
    scene.attacker.answer("AskCheckpointChunk", piece)
    await commit(scene, record)


async def highest_ballot(scene: Scene) -> None:
    async def say(peer: PeerId, stand: words.Stand) -> None:
        await scene.attacker.ask(peer, words.prepare(stand, BALLOT_LIMIT - 1, scene.id))

    await scene.each(say)


async def own_proposal(scene: Scene) -> None:
    """A conductor that asks for votes afterwards must propose what was accepted under the highest ballot."""
    base = await newest(scene)
    if base is None:
        return
    stand, number = words.Stand(base.step, base.hash), 1000
    made = forged.skipped_step(scene.attacker.run, base, scene.id)
    scene.forged.add(made.hash)
    await scene.attacker.tell_all(scene.peers, words.prepare(stand, number, scene.id))
    await scene.attacker.tell_all(scene.peers, words.accept(stand, number, scene.id, made.raw))


async def gradient_of_mine(scene: Scene) -> None:
    await own_gradient(scene, clipped=True)


async def unclipped_gradient(scene: Scene) -> None:
    await own_gradient(scene, clipped=False)


ATTACKS = (
    Attack("skipped-steps", "commits one skipped step after another", skip_steps, defence="votes"),
    Attack("relayed-step", "has the head pass a forged step on", repeated(relayed), defence="votes"),
    Attack(
        "own-gradient", "commits steps with gradients of its own, and serves them", gradient_of_mine, defence="votes"
    ),
    Attack("unclipped-gradient", "says that its huge gradients have norm 0", unclipped_gradient, defence="votes,norm"),
    Attack("own-state", "has all return to a state of its own, which is zero", own_state, defence="votes"),
    Attack(
        "highest-ballot",
        "asks the acceptors for the right to decide, with the highest number there is",
        repeated(highest_ballot),
        defence="role:Prepare",
    ),
    Attack(
        "own-proposal",
        "has acceptors accept a skipped step, which the conductor must then propose",
        repeated(own_proposal),
        defence="role:Prepare,role:Accept",
    ),
)
