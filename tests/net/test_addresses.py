"""Multiaddrs as people and peers write them."""

import pytest

from swarmd.errors import ConfigError
from swarmd.net.addresses import (
    announced,
    dialable,
    network_of,
    parse,
    parse_announced,
    parse_dialled,
    parse_listened,
    scope,
)

PEER = "12D3KooWNdo5kjPXU4ToRMdjC2siQYJQWhyavChcEvp8m1pB1Jbo"


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
        f"/ip4/10.0.0.1/tcp/4001/p2p/12D3KooW{'a' * 56}",  # longer than any id
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


def test_all_interfaces_become_their_addresses() -> None:
    assert [str(address) for address in dialable("192.0.2.1", 5)] == ["/ip4/192.0.2.1/tcp/5"]
    everywhere = announced(["/ip4/0.0.0.0/tcp/5", "/ip4/0.0.0.0/udp/5"])
    assert everywhere
    assert all(text.endswith("/tcp/5") and "0.0.0.0" not in text for text in everywhere)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/ip4/127.0.0.1/tcp/1", "loopback"),
        ("/ip4/127.8.9.10/tcp/1", "loopback"),
        ("/ip6/::1/tcp/1", "loopback"),
        ("/ip6/::ffff:127.0.0.1/tcp/1", "loopback"),
        ("/dns4/localhost/tcp/1", "loopback"),
        ("/dns/LOCALHOST./tcp/1", "loopback"),
        ("/dns4/printer.localhost/tcp/1", "loopback"),
        ("/ip4/169.254.169.254/tcp/80", "link-local"),
        ("/ip6/fe80::1/tcp/1", "link-local"),
        ("/ip4/10.0.0.1/tcp/1", "private"),
        ("/ip4/172.17.0.1/tcp/1", "private"),
        ("/ip4/172.32.0.1/tcp/1", "public"),
        ("/ip4/192.168.1.1/tcp/1", "private"),
        ("/ip6/fd7a:115c:a1e0::1/tcp/1", "private"),
        ("/ip6/::ffff:192.168.1.1/tcp/1", "private"),
        ("/ip4/100.64.0.1/tcp/1", "shared"),
        ("/ip4/100.128.0.1/tcp/1", "public"),
        ("/ip4/203.0.113.7/tcp/1", "public"),
        ("/ip6/2001:db8::1/tcp/1", "public"),
        ("/dns4/train.example.org/tcp/1", "name"),
        ("/ip4/0.0.0.0/tcp/1", "nowhere"),
        ("/ip6/::/tcp/1", "nowhere"),
        ("/ip4/224.0.0.1/tcp/1", "nowhere"),
        ("/ip6/ff02::1/tcp/1", "nowhere"),
        ("/ip4/255.255.255.255/tcp/1", "nowhere"),
    ],
)
def test_from_where_an_address_can_be_dialled(text: str, expected: str) -> None:
    address = parse(text)
    assert address is not None
    assert scope(address) == expected


def test_this_machine_has_a_loopback_and_knows_its_network() -> None:
    from swarmd.net.addresses import local_interfaces

    assert "127.0.0.0/8" in [str(own.network) for own in local_interfaces()]


@pytest.mark.parametrize(
    ("host", "network"),
    [
        ("127.0.0.1", "loopback"),
        ("::1", "loopback"),
        ("::ffff:127.8.0.1", "loopback"),
        ("203.0.113.77", "203.0.113.0/24"),
        ("::ffff:203.0.113.5", "203.0.113.0/24"),
        ("2001:db8:1:2::3", "2001:db8:1::/48"),
        ("fe80::1%eth0", "fe80::/48"),
        ("", ""),
        ("a name", ""),
    ],
)
def test_peers_are_told_apart_by_their_networks(host: str, network: str) -> None:
    assert network_of(host) == network
