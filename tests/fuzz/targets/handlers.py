"""Every handler of a peer, in a small swarm in virtual time, as a stranger with a finished greeting asks it.

No role is asked for, so that every handler hears of the stranger: a liar that has a role reaches it, too.

A case is [number of the peer that is asked, whether the stranger greets first, [message], [answer]]: the stranger sends
the messages one after the other, and answers what it is asked with the answers in turn. Each is [kind, body, [buffer]];
steps and versions in a body count from the swarm's present version. A record may be plain data in the body, with the
same steps, and is written as bytes before it is sent.
"""

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

from swarmd.config import CodecConfig, ModelConfig, OptimizerConfig, RunConfig, fingerprint
from swarmd.errors import NO_ANSWER, Refused
from swarmd.sim.engines.reference import Symbols
from swarmd.sim.engines.stamps import SymbolicData
from swarmd.sim.engines.symbolic import Factory
from swarmd.sim.world.clock import VirtualLoop
from swarmd.sim.world.device import Speed
from swarmd.sim.world.transport import SimTransport
from swarmd.sim.world.world import World
from swarmd.swarm.history.record_codec import UNREADABLE
from swarmd.swarm.history.record_format import read_record
from swarmd.swarm.wire.framing import to_frame
from swarmd.swarm.wire.messages.common import PROTOCOL, Message
from swarmd.swarm.wire.messages.presence import Hello
from swarmd.swarm.wire.own_card import first_card
from swarmd.swarm.wire.roles import Needs
from swarmd.values import Frame, PeerId
from tests.fuzz.parts import message_items, record_bytes
from tests.fuzz.target import Target

LAYOUT = {"head1": 0, "head2": 0, "tail1": 1, "tail2": 1}
RUN = RunConfig(
    name="fuzzed",
    model=ModelConfig(vocabulary=128, hidden=16, ffn=32, heads=2, layers=2, stages=2, sequence_length=12),
    optimizer=OptimizerConfig(warmup_steps=2),
    codecs=CodecConfig("fp32", "fp32", "fp32"),
    steps=100_000,
    sequences_per_step=16,
    sequences_per_microbatch=2,
    validate_every=0,
    checkpoint_every=2,
    rebalance_seconds=0.0,
)
BEGUN_VERSION = 2  # at which the stranger comes
BEGIN_SECONDS = 60.0  # virtual, until then
ASK_SECONDS = 0.05  # virtual, for an answer; then the next is sent
AFTER_SECONDS = 0.05  # virtual, for what comes of it
SPEED = Speed(0.1, 0.2, 0.02)  # so slow that the swarm's own work takes little of the fuzzer's time
LIFE = 50  # cases that a swarm sees: later ones would find what earlier ones left
STRANGER = "stranger"
RELATIVE = ("step", "version")
MESSAGES = 8  # of a case, at most
STEP_LIMIT = (1 << 64) - 1


class EveryRole:
    """A judge that gives every peer every role."""

    async def allows(self, peer: PeerId, message: Message, needs: Needs) -> bool:
        return True


class Swarm:
    """A swarm that trains, on a loop of its own, and a stranger in it."""

    def __init__(self) -> None:
        self.loop = VirtualLoop()
        self.seen: dict[str, tuple[int, Frame]] = {}  # a request of each kind, and the version at which it came
        self._lives = itertools.count(1)
        self.loop.run_until_complete(self._begin())

    async def _begin(self) -> None:
        symbols = Symbols()
        self.world = World(RUN, SymbolicData(RUN, symbols), engine=Factory(RUN, symbols))
        for name, stage in LAYOUT.items():
            it = await self.world.start(name, stage=stage, speed=SPEED)
            it.peer.links.judge_by(EveryRole())
            it.transport.serve(self._noting(it.peer.links._answer))
        await self.world.until(lambda: self.version() >= BEGUN_VERSION, BEGIN_SECONDS)

    def _noting(self, answer: Callable[[str, Frame], Any]) -> Callable[[str, Frame], Any]:
        def handler(peer: str, frame: Frame) -> Any:
            self.seen.setdefault(frame.kind, (self.version(), frame))
            return answer(peer, frame)

        return handler

    def version(self) -> int:
        return max((it.peer.history.version for it in self.world.peers.values()), default=0)

    def play(self, asked: str, greets: bool, messages: list[Frame], answers: list[Frame]) -> None:
        self.loop.run_until_complete(self._play(asked, greets, messages, answers))

    async def _play(self, asked: str, greets: bool, messages: list[Frame], answers: list[Frame]) -> None:
        transport = self.world.network.transport(STRANGER)
        turns = itertools.cycle(answers) if answers else None

        async def answer(peer: str, frame: Frame) -> Frame:
            if turns is None or frame.kind == "Hello":
                raise Refused("no")
            return next(turns)

        transport.serve(answer)
        transport.learn(asked, ())
        card = first_card(STRANGER, next(self._lives), (f"/sim/{STRANGER}",), "sim", ("fp32",))
        hello = Hello(PROTOCOL, fingerprint(RUN), card, 0)
        for frame in ((to_frame(hello),) if greets else ()) + tuple(messages):
            await self._ask(transport, asked, frame)
            self.world.check()
        await asyncio.sleep(AFTER_SECONDS)
        transport.die()
        self.world.network.transports.pop(STRANGER)
        self.world.check()

    async def _ask(self, transport: SimTransport, asked: str, frame: Frame) -> None:
        with contextlib.suppress(*NO_ANSWER):
            await transport.request(asked, frame, deadline_s=ASK_SECONDS)

    def close(self) -> None:
        self.loop.run_until_complete(self._end())
        self.loop.close()

    async def _end(self) -> None:
        self.world.failures.clear()
        await self.world.stop()


class Handlers(Target):
    """A swarm after the other, each for some cases."""

    def __init__(self) -> None:
        self._swarm = Swarm()
        self._played = 0

    def seeds(self) -> Iterator[Any]:
        seen = {kind: _item(frame, version) for kind, (version, frame) in self._swarm.seen.items()}
        made = {item[1][2]: [item[1][2], item[1][3], item[2]] for item in message_items()}
        for number, (kind, body, buffers) in enumerate({**made, **seen}.values()):
            yield [number, True, [[kind, body, buffers]], []]
            yield [number, True, [[kind, _of_stranger(body), buffers]], []]
        yield [0, False, [seen["Hello"], seen.get("AskLease", made["AskLease"])], []]
        yield [1, True, [made["AskSnapshot"], made["AskSnapshot"]], [made["Snapshot"], made["Chunk"]]]

    def play(self, case: Any) -> None:
        match case:
            case [int(number), greets, list(messages), list(answers)]:
                pass
            case _:
                return
        if self._played >= LIFE or not self._swarm.world.peers:
            self._swarm.close()
            self._swarm, self._played = Swarm(), 0
        self._played += 1
        names, version = list(LAYOUT), self._swarm.version()
        frames = [_frames(items, version) for items in (messages, answers)]
        try:
            self._swarm.play(names[number % len(names)], bool(greets), *frames)
        except BaseException:
            self._played = LIFE  # the next case gets a swarm that nothing has happened to
            raise

    def close(self) -> None:
        self._swarm.close()


def _item(frame: Frame, version: int) -> list[Any]:
    body, buffers = frame.body, [bytes(each) for each in frame.buffers]
    if "record" in body:
        with contextlib.suppress(*UNREADABLE):
            body, buffers = {**body, "record": read_record(buffers[0])}, buffers[1:]
    return [frame.kind, _shifted(body, -version), buffers]


def _frames(items: list[Any], version: int) -> list[Frame]:
    """The messages of a case as a transport would hand them over."""
    found = []
    for item in items[:MESSAGES]:
        match item:
            case [str(kind), dict(body), list(buffers)] if kind and all(type(key) is str for key in body):
                whole = tuple(it for it in buffers if isinstance(it, bytes))
                shifted = _shifted(body, version)
                if isinstance(record := shifted.get("record"), dict):
                    shifted, whole = {**shifted, "record": None}, (record_bytes(record), *whole)
                found.append(Frame(kind, shifted, whole))
    return found


def _shifted(tree: Any, by: int) -> Any:
    """The same with its steps and versions moved."""
    if isinstance(tree, list):
        return [_shifted(it, by) for it in tree]
    if not isinstance(tree, dict):
        return tree
    return {
        key: min(value + by, STEP_LIMIT) if key in RELATIVE and type(value) is int else _shifted(value, by)
        for key, value in tree.items()
    }


def _of_stranger(tree: Any) -> Any:
    """The same, said by the stranger of itself."""
    if isinstance(tree, list):
        return [_of_stranger(it) for it in tree]
    if not isinstance(tree, dict):
        return tree
    return {key: STRANGER if key == "peer" else _of_stranger(value) for key, value in tree.items()}


TARGET = Handlers
