"""Multiaddrs as people and peers write them."""

import socket

import pytest

from swarmd.errors import ConfigError
from swarmd.net.addresses import (
    AddressBook,
    announced,
    check_free,
    dialable,
    parse,
    parse_announced,
    parse_dialled,
    parse_listened,
)
from swarmd.net.limits import TransportLimits

PEER = "12D3KooWNdo5kjPXU4ToRMdjC2siQYJQWhyavChcEvp8m1pB1Jbo"
OTHER = "12D3KooWLRPJoDwC5h3QfNnQ2ZyhMVzTQb2mMhkRLz2dHUPLhGXn"


@pytest.mark.parametrize(
    "text",
    [
        "/ip4/192.0.2.1/tcp/4001",
        f"/ip4/192.0.2.1/tcp/4001/p2p/{PEER}",
        f"/ip6/2001:db8::1/tcp/1/p2p/{PEER}",
        f"/dns4/train.example.org/tcp/65535/p2p/{PEER}",
    ],
)
def test_what_we_can_use(text: str) -> None:
    assert str(parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "192.0.2.1:4001",
        "/ip4/192.0.2.1",
        "/ip4/192.0.2.1/tcp/65536",
        "/ip4/192.0.2.1/tcp/-1",
        "/ip4/2001:db8::1/tcp/1",
        "/ip6/192.0.2.1/tcp/1",
        "/ip4/192.0.2.256/tcp/1",
        "/ip4/192.0.2.1/udp/1/quic-v1",
        "/ip4/192.0.2.1/tcp/1/ws",
        f"/ip4/192.0.2.1/tcp/1/p2p/{PEER}/p2p-circuit",
        "/ip4/192.0.2.1/tcp/1/p2p/0OIl",
        "/dns4/a b/tcp/1",
        "/dns4/::1/tcp/1",
        "/ip4/192.0.2.1/tcp/1\n",
        "/ip4/" + "1" * 5000 + "/tcp/1",
    ],
)
def test_what_we_cannot(text: str) -> None:
    assert parse(text) is None
    with pytest.raises(ConfigError):
        parse_listened(text)
    with pytest.raises(ConfigError):
        parse_dialled(text)


def test_users_are_told_what_to_write() -> None:
    with pytest.raises(ConfigError, match="add /p2p/<peer id>"):
        parse_dialled("/ip4/192.0.2.1/tcp/4001")
    with pytest.raises(ConfigError, match="can't be dialled"):
        parse_dialled(f"/ip4/192.0.2.1/tcp/0/p2p/{PEER}")
    with pytest.raises(ConfigError, match="can't listen at"):
        parse_listened("/dns4/localhost/tcp/0")
    for text in ("nonsense", "/ip4/192.0.2.1/tcp/0", "/ip4/0.0.0.0/tcp/1", f"/ip4/192.0.2.1/tcp/1/p2p/{PEER}"):
        with pytest.raises(ConfigError, match="can't announce"):
            parse_announced(text)


def test_what_is_announced_replaces_where_we_listen() -> None:
    told = [parse_announced("/dns4/train.example.org/tcp/4001")]
    assert announced(["/ip4/127.0.0.1/tcp/7"], told) == ["/dns4/train.example.org/tcp/4001"]
    assert announced(["/ip4/127.0.0.1/tcp/7"]) == ["/ip4/127.0.0.1/tcp/7"]


def test_a_busy_port_and_a_foreign_address_are_found() -> None:
    with socket.socket() as busy:
        busy.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        with pytest.raises(ConfigError, match=f"tcp/{port}: the port is in use"):
            check_free([parse_listened(f"/ip4/127.0.0.1/tcp/{port}")])
    check_free([parse_listened(f"/ip4/127.0.0.1/tcp/{port}")])
    with pytest.raises(ConfigError, match="--listen"):
        check_free([parse_listened("/ip4/203.0.113.7/tcp/0")])


def test_all_interfaces_become_their_addresses() -> None:
    assert [str(address) for address in dialable("192.0.2.1", 5)] == ["/ip4/192.0.2.1/tcp/5"]
    everywhere = announced(["/ip4/0.0.0.0/tcp/5", "/ip4/0.0.0.0/udp/5"])
    assert everywhere
    assert all(text.endswith("/tcp/5") and "0.0.0.0" not in text for text in everywhere)


def known(book: AddressBook, peer: str) -> list[str]:
    return [address.transport for address in book.addresses(peer)]


def test_the_book_keeps_the_newest_and_is_bounded() -> None:
    book = AddressBook(TransportLimits(known_peers=2, addresses_per_peer=2))
    book.learn(PEER, ["/ip4/192.0.2.1/tcp/1", "/ip4/192.0.2.2/tcp/1"])
    book.learn(PEER, [f"/ip4/192.0.2.3/tcp/1/p2p/{PEER}"])
    assert known(book, PEER) == ["/ip4/192.0.2.3/tcp/1", "/ip4/192.0.2.1/tcp/1"]
    book.learn(OTHER, ["/ip4/192.0.2.9/tcp/1"])
    book.learn("third", ["/ip4/192.0.2.9/tcp/1"])
    assert known(book, PEER) == []
    assert known(book, OTHER) == ["/ip4/192.0.2.9/tcp/1"]


def test_the_book_leaves_out_what_is_not_worth_dialling() -> None:
    book = AddressBook(TransportLimits())
    book.learn(
        PEER,
        [
            "junk",
            "/ip4/0.0.0.0/tcp/1",
            "/ip4/224.0.0.1/tcp/1",
            "/ip4/192.0.2.1/tcp/0",
            f"/ip4/192.0.2.1/tcp/1/p2p/{OTHER}",
        ],
    )
    assert known(book, PEER) == []
