"""A TCP proxy that lets so many bytes per second through, each way: `python -m benchmarks.planner.link PORT RATE`.

Prints the port that it listens on, then forwards every connection to PORT until it is killed. A token bucket per
direction holds bytes back; what is held back fills the kernel's buffers, so senders feel it as on a slow link.
"""

import asyncio
import sys

CHUNK_BYTES = 16 << 10  # at once; a millisecond of 100 Mb/s, so that small frames don't wait long behind large ones
BURST_SECONDS = 0.005  # of the rate, that may pass at once after a pause


class Bucket:
    """Bytes that may pass, refilled by the clock."""

    def __init__(self, bytes_per_second: float) -> None:
        self._rate = bytes_per_second
        self._free = 0.0  # loop time at which everything that was let through would have passed at the rate

    async def take(self, nbytes: int) -> None:
        """Waits until so many may pass."""
        now = asyncio.get_running_loop().time()
        self._free = max(self._free, now - BURST_SECONDS) + nbytes / self._rate
        if self._free > now:
            await asyncio.sleep(self._free - now)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, bucket: Bucket) -> None:
    try:
        while data := await reader.read(CHUNK_BYTES):
            await bucket.take(len(data))
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass  # either end is gone; the other is told by the close below
    finally:
        writer.close()


async def serve(target: int, bytes_per_second: float) -> None:
    """Runs until it is cancelled."""
    there, back = Bucket(bytes_per_second), Bucket(bytes_per_second)

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", target)
        await asyncio.gather(_pump(reader, far_writer, there), _pump(far_reader, writer, back))

    server = await asyncio.start_server(forward, "127.0.0.1", 0, limit=CHUNK_BYTES)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), float(sys.argv[2])))
