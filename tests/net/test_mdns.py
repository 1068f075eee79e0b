"""Two daemons find each other on the loopback interface; skipped where that has no multicast."""

import asyncio
import socket

import pytest

from swarmd.net.mdns import Discovery

ONE = "12D3KooWNdo5kjPXU4ToRMdjC2siQYJQWhyavChcEvp8m1pB1Jbo"
TWO = "12D3KooWLRPJoDwC5h3QfNnQ2ZyhMVzTQb2mMhkRLz2dHUPLhGXn"


def loopback_has_multicast() -> bool:
    group, port = "224.0.0.251", 5353
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ear,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mouth,
    ):
        try:
            ear.bind(("", 0))
            membership = socket.inet_aton(group) + socket.inet_aton("127.0.0.1")
            ear.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
            mouth.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
            mouth.sendto(b"?", (group, ear.getsockname()[1] or port))
            ear.settimeout(1.0)
            return ear.recv(16) == b"?"
        except OSError:
            return False


@pytest.mark.skipif(not loopback_has_multicast(), reason="no multicast on loopback here")
async def test_two_peers_find_each_other_and_hear_of_a_new_run() -> None:
    heard: asyncio.Queue[tuple[str, tuple[str, ...], str, str]] = asyncio.Queue()
    address = f"/ip4/127.0.0.1/tcp/4001/p2p/{ONE}"
    one = await Discovery.start(ONE, [address], "", lambda *_: None, interfaces=["127.0.0.1"], machine="a/b")
    two = await Discovery.start(
        TWO,
        [f"/ip4/127.0.0.1/tcp/4002/p2p/{TWO}"],
        "",
        lambda *word: heard.put_nowait(word),
        interfaces=["127.0.0.1"],
    )
    try:
        async with asyncio.timeout(10):
            assert await heard.get() == (ONE, (address,), "", "a/b")
            await one.announce([address], "0123456789abcdef")
            while (await heard.get())[2] != "0123456789abcdef":
                pass
    finally:
        await one.close()
        await two.close()


@pytest.mark.parametrize(
    "properties",
    [
        {},
        {"a0": "nonsense"},
        {"a0": "/ip4/127.0.0.1/tcp/1"},
        {"a0": None},
        {"a0": f"/ip4/127.0.0.1/tcp/1/p2p/{ONE}", "a1": f"/ip4/127.0.0.1/tcp/1/p2p/{TWO}"},
        {"a0": f"/ip4/127.0.0.1/tcp/1/p2p/{TWO}"},  # ourselves
        {"a0": f"/ip4/127.0.0.1/tcp/1/p2p/{ONE}", "run": "x" * 65},
        {"a0": f"/ip4/127.0.0.1/tcp/1/p2p/{ONE}", "machine": "x" * 65},
    ],
)
def test_a_word_that_is_not_a_peers_is_left_out(properties: dict[str, str | None]) -> None:
    heard: list[object] = []
    Discovery(None, TWO, lambda *word: heard.append(word))._hear(properties)  # type: ignore[arg-type]
    assert heard == []
