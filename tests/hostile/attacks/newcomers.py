"""Attacks on a newcomer, by the peer that it was told to join through."""

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from swarmd.config import DataConfig, ModelConfig, RunConfig, fingerprint, to_plain
from swarmd.swarm.history.record import genesis_hash
from swarmd.swarm.wire.messages.fields import STEP_LIMIT
from swarmd.values import Frame, PeerId
from tests.e2e.swarm import Daemon, Swarm
from tests.hostile import words
from tests.hostile.attack import Attack, Scene
from tests.hostile.attacker import Attacker
from tests.hostile.victims import RUN, look_at, weakened

SECRET = "a line that nobody else may read\n"
HUGE = 1 << 20  # the width of a model that no device holds
MEMORY = 8 << 30  # address space of a newcomer that may allocate without end
LAST_LIFE = 1 << 61  # an incarnation that no honest peer gets above
LATEST = 1 << 40  # a number of arrival after all others
NEWCOMER_S = 20.0  # for one to be at work


@asynccontextmanager
async def bait(scene: Scene, run: RunConfig) -> AsyncIterator[tuple[Attacker, Swarm]]:
    """A second attacker, who founded a run of its own, and a place for newcomers."""
    directory = _directory(scene)
    attacker = await Attacker.start(directory, "bait")
    attacker.run, attacker.fingerprint = run, fingerprint(run)
    attacker.says.update(stage=1, state="serving", room=64, record_hash=genesis_hash(run))
    attacker.answer("AskSettings", lambda *_: words.settings(to_plain(run), attacker.fingerprint))
    attacker.answer("AskPlace", lambda *_: words.place(0, (attacker.card(),), attacker.id, 1))
    attacker.answer("Prepare", lambda peer, ask: words.promise(ask.body["ballot"]["number"], peer))
    attacker.answer("Locate", lambda *_: words.located(here=False))
    newcomers = Swarm(directory, weakened(scene.without, "--memory", str(MEMORY)))
    try:
        yield attacker, newcomers
    finally:
        await newcomers.stop()
        await attacker.stop()


async def read_a_file(scene: Scene) -> None:
    """The run's text is a file on the newcomer's disk: its tokens are what is read."""
    secret = _directory(scene) / "secret.txt"
    secret.write_text(SECRET * 4000)
    secret.chmod(0o600)
    run = dataclasses.replace(RUN, model=_two_stages(), data=DataConfig(source=str(secret), held_out=0.0))
    got = asyncio.Event()
    loop = asyncio.get_running_loop()

    def take(_: PeerId, frame: Frame) -> Frame:
        if SECRET[:8].encode() in words.tokens_in(frame)[::4]:  # four bytes a token, little-endian
            loop.call_soon_threadsafe(got.set)
        return words.busy()

    async with bait(scene, run) as (attacker, newcomers):
        attacker.answer("Hop", take)
        daemon = await newcomers.start("--bootstrap", attacker.address)
        await _either(got, daemon)
        scene.won[:] = ["a file of mode 0600 is read"] if got.is_set() else []


def _two_stages() -> ModelConfig:
    return dataclasses.replace(RUN.model, layers=2, stages=2)


async def _either(happened: asyncio.Event, daemon: Daemon) -> None:
    """Waits for something, or for the daemon's end."""
    waits = [asyncio.ensure_future(happened.wait()), asyncio.ensure_future(daemon.process.wait())]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


async def bomb(scene: Scene) -> None:
    """The run's model is larger than any memory."""
    model = dataclasses.replace(RUN.model, hidden=HUGE, ffn=HUGE, layers=64)
    async with bait(scene, dataclasses.replace(RUN, model=model)) as (attacker, newcomers):
        daemon = await newcomers.start("--bootstrap", attacker.address, capture=True)
        assert daemon.process.stderr is not None
        said = (await daemon.process.stderr.read()).decode(errors="replace")
        code = await daemon.process.wait()
        scene.won[:] = [] if code == 2 and "Traceback" not in said else [f"the newcomer ends with {code}"]


async def misplace(scene: Scene) -> None:
    """The attacker's run is the swarm's own: of two entries one is the attacker, who gives a place in a lie."""
    attacker = scene.attacker
    cards = [await attacker.greet(peer) for peer in scene.peers]
    false = [words.changed(card, incarnation=LAST_LIFE, addresses=[], version=STEP_LIMIT) for card in cards]
    attacker.answer("AskSettings", lambda *_: words.settings(to_plain(attacker.run), attacker.fingerprint))
    attacker.answer("AskPlace", lambda *_: words.place(1, false, attacker.id, LATEST))
    attacker.says.update(state="serving", stage=1)
    newcomers = Swarm(_directory(scene), weakened(scene.without, "--quiet"))
    scene.won[:] = ["the newcomer gets nowhere"]
    try:
        entries = ("--bootstrap", attacker.address, "--bootstrap", scene.victims.addresses[0])
        daemon = await newcomers.start(*entries, "--stage", "1")
        while (await look_at(daemon)).state != "serving":
            await asyncio.sleep(0.2)
        scene.won.clear()
        await asyncio.Event().wait()
    finally:
        await newcomers.stop()


def _directory(scene: Scene) -> Path:
    assert scene.directory is not None
    directory = scene.directory / f"newcomers-{time.monotonic_ns()}"
    directory.mkdir()
    return directory


ATTACKS = (
    Attack(
        "secrets",
        "founds a run whose text is a file of the newcomer's",
        read_a_file,
        defence="own-text",
        ends=True,
        physical=True,
    ),
    Attack(
        "bomb", "founds a run whose model is larger than any memory", bomb, defence="fits", ends=True, physical=True
    ),
    Attack(
        "false-place",
        "gives a newcomer a place, and false cards of everyone",
        misplace,
        open="of two that it was told of, one lies, and something that is not its place keeps it out still",
        physical=True,
    ),
)
