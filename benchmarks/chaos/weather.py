"""The network between daemons: a TCP proxy before each of them, whose address it announces, so that every connection
can be stalled, slowed and damaged without root.

Who is at the other end of a connection is found by the owner of its port. Knows nothing of what the bytes mean.
A partition stalls bytes as a cut cable does: nobody is told, and what was under way comes when the cable is mended. (A
new connection is accepted by the proxy's kernel and then hears nothing, where a cut cable would not even accept it.)
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable

import psutil

CHUNK_BYTES = 64 << 10
UNDER_WAY = 64  # chunks between the two ends of a direction: 4 MiB, then the sender waits
LOOPBACK = "127.0.0.1"


class Weather:
    """The state of the network between numbered daemons."""

    def __init__(self) -> None:
        self._cut: dict[int, int] = {}  # daemons that are cut off -> the side they are on
        self._slow: dict[int, tuple[float, float]] = {}  # daemons with a slow link -> seconds one way, bytes a second
        self._busy_until: dict[tuple[int, str], float] = {}  # when all of a slow link's bytes, each way, are through
        self._damage: dict[int, int] = {}  # daemons -> chunks to and from them that are still to be damaged
        self._changed = asyncio.Event()
        self.damaged = 0  # chunks

    def cut_off(self, daemons: tuple[int, ...]) -> None:
        """These reach each other and nobody else."""
        for daemon in daemons:
            self._cut[daemon] = min(daemons) + 1

    def mend(self, daemons: tuple[int, ...]) -> None:
        """These are connected again."""
        for daemon in daemons:
            self._cut.pop(daemon, None)
        self._changed.set()
        self._changed = asyncio.Event()

    def slow_down(self, daemon: int, delay_s: float, bytes_per_second: float) -> None:
        """Every word to and from it is late, and all its connections together have so much, each way."""
        self._slow[daemon] = (delay_s, bytes_per_second)

    def speed_up(self, daemon: int) -> None:
        """Its connections are as fast as they were."""
        self._slow.pop(daemon, None)

    def damage(self, daemon: int, chunks: int) -> None:
        """A bit is flipped in so many of the next chunks to or from it."""
        self._damage[daemon] = chunks

    def parted(self, one: int, other: int) -> bool:
        """True if nothing passes between them."""
        return self._cut.get(one, 0) != self._cut.get(other, 0)

    async def until_joined(self, one: int, other: int) -> None:
        """Waits while nothing passes between them."""
        while self.parted(one, other):
            await self._changed.wait()

    def delay_s(self, one: int, other: int) -> float:
        """Seconds that a word takes between them, one way."""
        return sum(self._slow[daemon][0] for daemon in (one, other) if daemon in self._slow)

    async def pass_through(self, source: int, target: int, nbytes: int) -> None:
        """Waits until so many bytes have gone through the slow links between them, which others may be using, too."""
        now = due = asyncio.get_running_loop().time()
        for link in ((source, "out"), (target, "in")):
            if link[0] in self._slow:
                seconds = nbytes / self._slow[link[0]][1]
                self._busy_until[link] = max(now, self._busy_until.get(link, 0.0)) + seconds
                due = max(due, self._busy_until[link])
        if due > now:
            await asyncio.sleep(due - now)

    def strike(self, one: int, other: int, chunk: bytes) -> bytes:
        """The chunk, damaged if it is its turn."""
        for daemon in (one, other):
            if self._damage.get(daemon, 0) > 0:
                self._damage[daemon] -= 1
                self.damaged += 1
                middle = len(chunk) // 2
                return chunk[:middle] + bytes([chunk[middle] ^ 1]) + chunk[middle + 1 :]
        return chunk


class Proxy:
    """Stands before one daemon."""

    def __init__(self, number: int, target: int, weather: Weather, owner_of: Callable[[int], int | None]) -> None:
        self._number, self._target = number, target  # the daemon's number, and the port it listens at
        self._weather = weather
        self._owner_of = owner_of  # the daemon that a process id belongs to
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()
        self.port = 0

    async def start(self) -> None:
        """Listens at a free port."""
        self._server = await asyncio.start_server(self._accept, LOOPBACK, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Ends every connection."""
        if self._server is not None:
            self._server.close()
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            await self._carry(reader, writer)
        except OSError:
            pass  # one of the two ends is gone, and now so is the other
        finally:
            self._open.discard(task)
            abort(writer)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pid = await asyncio.to_thread(owner_of_port, writer.get_extra_info("peername")[1], self.port)
        other = self._owner_of(pid) if pid is not None else None
        if other is None:
            return  # it hung up before it could be seen who it was
        await self._weather.until_joined(self._number, other)
        inner_reader, inner_writer = await asyncio.open_connection(LOOPBACK, self._target)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._one_way(reader, inner_writer, other, self._number))
                group.create_task(self._one_way(inner_reader, writer, self._number, other))
        except* OSError:
            pass  # one of the two ends is gone; the group has ended the other direction
        finally:
            abort(inner_writer)

    async def _one_way(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, source: int, target: int
    ) -> None:
        """Carries bytes until one end closes; then ends both directions."""
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(UNDER_WAY)
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._arrive(under_way, writer, source, target))
            while True:
                try:
                    chunk = await reader.read(CHUNK_BYTES)
                except OSError:
                    chunk = b""
                await under_way.put((loop.time() + self._weather.delay_s(source, target), chunk))
                if not chunk:
                    return

    async def _arrive(
        self,
        under_way: "asyncio.Queue[tuple[float, bytes]]",
        writer: asyncio.StreamWriter,
        source: int,
        target: int,
    ) -> None:
        loop, weather = asyncio.get_running_loop(), self._weather
        while True:
            due, chunk = await under_way.get()
            await asyncio.sleep(max(0.0, due - loop.time()))
            await weather.until_joined(source, target)
            await weather.pass_through(source, target, len(chunk))
            if not chunk or writer.is_closing():
                raise ConnectionResetError("one of the two ends closed")
            writer.write(weather.strike(source, target, chunk))
            await writer.drain()


def abort(writer: asyncio.StreamWriter) -> None:
    """Resets a connection, as the kernel does for a process that died."""
    raw = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        if raw is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def owner_of_port(port: int, connected_to: int) -> int | None:
    """The process that has a TCP connection from one port of this machine to another."""
    for connection in psutil.net_connections("tcp4"):
        if not connection.laddr or not connection.raddr:
            continue
        if (connection.laddr.port, connection.raddr.port) == (port, connected_to):
            return connection.pid
    return None


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port
