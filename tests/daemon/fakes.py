"""A daemon without a swarm: says what it is told to say, and remembers who asked it to join."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace

from swarmd.daemon.control import ControlServer
from swarmd.daemon.home import Home
from swarmd.status import Bytes, HopRow, PeerRow, Queues, Status
from swarmd.swarm.peer.drain import Drained

ADDRESS = "/ip4/127.0.0.1/tcp/4001/p2p/12D3KooWAnExampleOfAPeerIdThatIsLongEnough"

STATUS = Status(
    peer_id="12D3KooWAnExampleOfAPeerIdThatIsLongEnough",
    run="toy",
    fingerprint="0123456789abcdef",
    model="3 layers, 64 wide",
    stage=1,
    stages=3,
    state="serving",
    waiting_for="",
    version=7,
    step=8,
    steps=20,
    loss=3.25,
    validation_loss=3.5,
    tokens_per_second=1234.0,
    microbatches_per_second=2.5,
    progress=0.5,
    seconds_left=90.0,
    queues=Queues(forward=2, backward=1, in_flight=5, downstream=2, retained_bytes=4096),
    peers={"0": 2, "1": 2, "2": 1},
    addresses=(ADDRESS,),
    device="cpu",
    bytes=Bytes(sent=1_500_000, received=2_000),
    uptime_seconds=61.0,
    ledger={"resent": 3, "subtracted": 0, "lost": 0, "duplicated": 0},
    memory_bytes=278_000_000,
)

PEER = PeerRow("12D3KooWFirst", 0, "serving", 7, 1, 0, 1, 2.5, "cpu", (ADDRESS,), 0.0, is_self=True)
SILENT_PEER = PeerRow("12D3KooWSecond", 1, "serving", 7, 0, 0, 0, 0.0, "cuda:0", (), 12.5, suspect=True)
HOP = HopRow(step=8, index=3, state="passed", custodian="12D3KooWFirst", holder="12D3KooWSecond", seconds=0.25)


DRAINED = Drained(heir="12D3KooWSecond", handed_over=5, given_up=1)


class FakeDaemon:
    """A daemon as the control socket shows and commands it, with settable answers."""

    def __init__(self) -> None:
        self.current = STATUS
        self.joined: list[str] = []
        self.told: list[tuple[object, ...]] = []
        self.trouble: Exception | None = None
        self.trouble_at_the_end: Exception | None = None  # of a command that takes a while
        self.looks = 0
        self.hold: asyncio.Event | None = None

    def status(self) -> Status:
        if self.trouble is not None:
            raise self.trouble
        self.looks += 1
        return self.current

    def say(self, **changes: object) -> None:
        self.current = replace(self.current, **changes)  # type: ignore[arg-type]

    def peers(self) -> list[PeerRow]:
        return [PEER, SILENT_PEER]

    def queues(self) -> list[HopRow]:
        return [HOP]

    async def join(self, bootstrap: str) -> None:
        if self.hold is not None:
            await self.hold.wait()
        if self.trouble is not None:
            raise self.trouble
        self.joined.append(bootstrap)

    async def switch(self, stage: int) -> None:
        await self._do("switch", stage)

    async def drain(self, why: str, bound_s: float | None = None) -> Drained:
        await self._do("drain", bound_s)
        return DRAINED

    async def leave(self) -> None:
        await self._do("leave")

    async def pause(self) -> None:
        await self._do("pause")

    async def resume(self) -> None:
        await self._do("resume")

    async def _do(self, *command: object) -> None:
        if self.hold is not None:
            await self.hold.wait()
        if self.trouble is not None:
            raise self.trouble
        if self.trouble_at_the_end is not None:
            raise self.trouble_at_the_end
        self.told.append(command)


@contextlib.asynccontextmanager
async def served(daemon: FakeDaemon, home: Home) -> AsyncIterator[None]:
    """The daemon behind a real control socket."""
    server = ControlServer(daemon, daemon, home)
    await server.start()
    try:
        yield
    finally:
        await server.stop()
