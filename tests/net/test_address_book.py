"""A peer's addresses: those that are dialled from here, in their order."""

import ipaddress

import pytest

from swarmd.net.address_book import AddressBook
from swarmd.net.addresses import Address, parse
from swarmd.net.limits import TransportLimits

PEER = "12D3KooWNdo5kjPXU4ToRMdjC2siQYJQWhyavChcEvp8m1pB1Jbo"
OTHER = "12D3KooWLRPJoDwC5h3QfNnQ2ZyhMVzTQb2mMhkRLz2dHUPLhGXn"
HERE = "aaaa/1111"
THERE = "bbbb/2222"
BRIDGE, LAN, LOOPBACK = "172.17.0.1/16", "192.168.1.5/24", "127.0.0.1/8"


def book_at(*interfaces: str, limits: TransportLimits | None = None) -> AddressBook:
    """The addresses of a daemon on a machine with these addresses."""
    own = [ipaddress.ip_interface(text) for text in interfaces]
    return AddressBook(limits or TransportLimits(), HERE, lambda: own)


def dialled(book: AddressBook, peer: str = PEER) -> list[str]:
    return [address.host for address in book.addresses(peer)]


def at(host: str, port: int = 1) -> str:
    return f"/ip{6 if ':' in host else 4}/{host}/tcp/{port}"


def address_of(text: str) -> Address:
    address = parse(text)
    assert address is not None
    return address


@pytest.mark.parametrize(
    ("interfaces", "said", "machine", "expected"),
    [
        # The loopback only of this machine's network; then it comes first.
        ([LOOPBACK, LAN], ["127.0.0.1", "192.168.1.9"], THERE, ["192.168.1.9"]),
        ([LOOPBACK, LAN], ["192.168.1.5", "127.0.0.1"], HERE, ["127.0.0.1", "192.168.1.5"]),
        ([LOOPBACK], ["127.0.0.1", "::1"], THERE, []),
        ([LOOPBACK], ["127.0.0.1"], "aaaa/2222", []),  # a container on the same machine has another loopback
        ([LOOPBACK], ["127.0.0.1"], "", []),  # a card that doesn't say
        ([LOOPBACK], ["127.0.0.1"], None, ["127.0.0.1"]),  # a person said so: a tunnel, perhaps
        # Link-local never.
        ([LAN, "169.254.3.4/16", "fe80::5/64"], ["169.254.3.5", "fe80::6"], THERE, []),
        # Private ones in whose network this machine is; its own address is another machine's never.
        ([BRIDGE, LAN], ["172.17.0.1", "192.168.1.9"], THERE, ["192.168.1.9"]),
        ([BRIDGE, LAN], ["172.17.0.1", "10.0.0.1"], THERE, []),
        ([BRIDGE, LAN], ["172.17.0.2"], THERE, ["172.17.0.2"]),  # a container here
        ([LAN], ["10.0.0.1", "198.51.100.1", "192.168.1.9"], THERE, ["192.168.1.9", "198.51.100.1"]),
        (["fd00:1::5/64"], ["fd00:1::6", "fd00:2::6"], THERE, ["fd00:1::6"]),
        # A site with several networks, as long as there is nothing better.
        (["10.0.1.5/24"], ["10.0.2.7"], THERE, ["10.0.2.7"]),
        (["10.0.1.5/24"], ["10.0.2.7", "198.51.100.1"], THERE, ["198.51.100.1"]),
        (["10.0.1.5/24"], ["192.168.7.7"], THERE, []),
        # A VPN gives each machine a network of one address.
        (["100.64.0.5/32"], ["100.99.1.1"], THERE, ["100.99.1.1"]),
        ([LAN], ["100.99.1.1"], THERE, []),
        # Public ones from everywhere, except one's own.
        ([LAN], ["198.51.100.1", "2001:db8::1"], THERE, ["198.51.100.1", "2001:db8::1"]),
        (["198.51.100.1/24"], ["198.51.100.1"], THERE, []),
        (["198.51.100.1/24"], ["198.51.100.1"], HERE, ["198.51.100.1"]),
    ],
)
def test_what_is_dialled_depends_on_who_dials(
    interfaces: list[str], said: list[str], machine: str | None, expected: list[str]
) -> None:
    book = book_at(*interfaces)
    book.learn(PEER, [at(host) for host in said], machine)
    assert dialled(book) == expected
    assert {address.host for address in book.known(PEER).all()} == set(said), "what is of no use here and now is kept"


def test_names_are_dialled_after_addresses() -> None:
    book = book_at(LAN)
    book.learn(PEER, ["/dns4/localhost/tcp/1", "/dns4/train.example.org/tcp/1", at("198.51.100.1")], THERE)
    assert dialled(book) == ["198.51.100.1", "train.example.org"]


def test_what_worked_comes_first_whatever_it_is() -> None:
    book = book_at(LOOPBACK, LAN)
    book.worked(PEER, address_of(at("127.0.0.1", 7)))
    book.learn(PEER, [at("192.168.1.9"), at("198.51.100.1")], THERE)
    assert dialled(book) == ["127.0.0.1", "192.168.1.9", "198.51.100.1"]
    book.worked(PEER, address_of(at("198.51.100.1")))
    assert dialled(book) == ["198.51.100.1", "127.0.0.1", "192.168.1.9"]
    for host in range(1, 9):
        book.worked(PEER, address_of(at(f"198.51.100.{host}")))
    assert len(book.known(PEER).worked) == 4


def test_it_is_the_network_that_changes_and_not_what_is_known() -> None:
    interfaces = [ipaddress.ip_interface("192.168.1.5/24")]
    book = AddressBook(TransportLimits(), HERE, lambda: interfaces)
    book.learn(PEER, [at("10.7.7.7"), at("192.168.1.9")], THERE)
    assert dialled(book) == ["192.168.1.9"]
    interfaces[:] = [ipaddress.ip_interface("10.7.7.1/24")]
    assert dialled(book) == ["10.7.7.7"]


def test_a_machine_with_many_bridges_is_still_reached() -> None:
    book = book_at(LAN)
    book.learn(PEER, [*(at(f"172.{number}.0.1") for number in range(17, 32)), at("192.168.1.9")], THERE)
    assert dialled(book) == ["192.168.1.9"]


def test_an_earlier_life_is_recalled() -> None:
    book = book_at(LOOPBACK)
    book.recall(PEER, [at("127.0.0.1"), at("127.0.0.1", 2)], [at("127.0.0.1", 2)], "cccc/3333")
    assert [address.port for address in book.addresses(PEER)] == [2], "the machine has booted since: what worked counts"
    book.recall(OTHER, [at("127.0.0.1")], [], None)
    assert dialled(book, OTHER) == ["127.0.0.1"]


def transports(book: AddressBook, peer: str) -> list[str]:
    return [address.transport for address in book.addresses(peer)]


def test_the_book_keeps_the_newest_and_is_bounded() -> None:
    book = book_at(LAN, limits=TransportLimits(known_peers=2, addresses_per_peer=2))
    book.learn(PEER, ["/ip4/192.0.2.1/tcp/1", "/ip4/192.0.2.2/tcp/1"])
    book.learn(PEER, [f"/ip4/192.0.2.3/tcp/1/p2p/{PEER}"])
    assert transports(book, PEER) == ["/ip4/192.0.2.3/tcp/1", "/ip4/192.0.2.1/tcp/1"]
    book.learn(OTHER, ["/ip4/192.0.2.9/tcp/1"])
    book.learn("third", ["/ip4/192.0.2.9/tcp/1"])
    assert transports(book, PEER) == []
    assert transports(book, OTHER) == ["/ip4/192.0.2.9/tcp/1"]


def test_the_book_leaves_out_what_is_nobodys_address() -> None:
    book = book_at(LAN)
    words = ["junk", "/ip4/0.0.0.0/tcp/1", "/ip4/224.0.0.1/tcp/1", "/ip4/192.0.2.1/tcp/0"]
    book.learn(PEER, [*words, f"/ip4/192.0.2.1/tcp/1/p2p/{OTHER}"], THERE)
    assert transports(book, PEER) == []
    assert not book.known(PEER).all()
