"""The proxies: bytes pass, stall, are late, are damaged, and ends are heard of."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from benchmarks.chaos.weather import LOOPBACK, Proxy, Weather, free_port, owner_of_port

Dial = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
    writer.close()


@asynccontextmanager
async def behind_a_proxy(weather: Weather, *, listens: bool = True) -> AsyncIterator[Dial]:
    """Daemon 0 echoes; this process dials as daemon 1."""
    port = free_port()
    server = await asyncio.start_server(echo, LOOPBACK, port) if listens else None
    proxy = Proxy(0, port, weather, lambda pid: 1 if pid == os.getpid() else None)
    await proxy.start()
    writers: list[asyncio.StreamWriter] = []

    async def dial() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(LOOPBACK, proxy.port)
        writers.append(writer)
        return reader, writer

    try:
        yield dial
    finally:
        for writer in writers:
            writer.transport.abort()
        await proxy.stop()
        if server is not None:
            server.close()


async def test_bytes_pass_and_ends_are_passed_on() -> None:
    async with behind_a_proxy(Weather()) as dial:
        reader, writer = await dial()
        writer.write(b"x" * 300_000)
        assert await reader.readexactly(300_000) == b"x" * 300_000
        port = writer.get_extra_info("sockname")[1]
        assert owner_of_port(port, writer.get_extra_info("peername")[1]) == os.getpid()
        writer.write_eof()
        with pytest.raises((asyncio.IncompleteReadError, OSError)):
            await reader.readexactly(1)


async def test_a_partition_stalls_and_what_was_under_way_comes_when_it_is_mended() -> None:
    weather = Weather()
    async with behind_a_proxy(weather) as dial:
        reader, writer = await dial()
        writer.write(b"before")
        assert await reader.readexactly(6) == b"before"
        weather.cut_off((0,))
        writer.write(b"during")
        coming = asyncio.create_task(reader.readexactly(6))
        done, _ = await asyncio.wait((coming,), timeout=0.2)
        assert not done
        weather.mend((0,))
        assert await coming == b"during"


def test_those_cut_off_together_reach_each_other() -> None:
    weather = Weather()
    weather.cut_off((0, 4))
    assert not weather.parted(0, 4)
    assert weather.parted(0, 1) and weather.parted(2, 4)
    weather.mend((0, 4))
    assert not weather.parted(0, 1)


async def test_a_slow_link_is_late_and_narrow() -> None:
    weather = Weather()
    async with behind_a_proxy(weather) as dial:
        reader, writer = await dial()
        weather.slow_down(1, 0.1, 1e6)
        began = asyncio.get_running_loop().time()
        writer.write(b"x" * 100_000)
        await reader.readexactly(100_000)
        assert asyncio.get_running_loop().time() - began >= 2 * 0.1 + 2 * 0.1 - 0.05, "both ways late, both ways narrow"
        weather.speed_up(1)
        assert weather.delay_s(0, 1) == 0.0


async def test_a_slow_daemon_has_one_link_for_all_its_connections() -> None:
    weather = Weather()
    weather.slow_down(1, 0.0, 1e6)
    began = asyncio.get_running_loop().time()
    await asyncio.gather(
        *(weather.pass_through(source, 1, 50_000) for source in (0, 2, 3)), weather.pass_through(1, 0, 9)
    )
    assert 0.14 <= asyncio.get_running_loop().time() - began < 1.0


async def test_damage_flips_one_bit_of_so_many_chunks() -> None:
    weather = Weather()
    async with behind_a_proxy(weather) as dial:
        reader, writer = await dial()
        weather.damage(1, 1)
        writer.write(b"\x00" * 8)
        damaged = await reader.readexactly(8)
        assert sum(byte.bit_count() for byte in damaged) == 1
        writer.write(b"\x00" * 8)
        assert await reader.readexactly(8) == b"\x00" * 8
        assert weather.damaged == 1


async def test_a_daemon_that_is_down_refuses() -> None:
    async with behind_a_proxy(Weather(), listens=False) as dial:
        reader, _ = await dial()
        with pytest.raises((asyncio.IncompleteReadError, OSError)):
            await reader.readexactly(1)
