"""Words about where peers are: multiaddrs, machines, and what is announced on a local network.

A case is [[address], machine, {property of an announcement: text}].
"""

import ipaddress
from collections.abc import Iterator
from typing import Any, cast

from swarmd.errors import ConfigError
from swarmd.net.address_book import AddressBook
from swarmd.net.addresses import announced, parse, parse_announced, parse_dialled, parse_listened, scope
from swarmd.net.dial_pace import DialPace
from swarmd.net.limits import TransportLimits
from swarmd.net.mdns import ADDRESSES, WORD_CHARACTERS, Discovery, _describe
from tests.fuzz.parts import check_sentence
from tests.fuzz.target import Finding, Target

OWN = "12D3KooWAnExampMeofAPeerJdThatisLongEnough"
PEER, OTHER = (
    "12D3KooWNdo5kjPXU4ToRMdjC2siQYJQWhyavChcEvp8m1pB1Jbo",
    "12D3KooWLRPJoDwC5h3QfNnQ2ZyhMVzTQb2mMhkRLz2dHUPLhGXn",
)
HERE = "aaaa/1111"
INTERFACES = [ipaddress.ip_interface(text) for text in ("127.0.0.1/8", "192.168.1.5/24", "fd00:1::5/64")]
WORDS = 32  # of a case, at most: a card has no more addresses
LIMITS = TransportLimits(known_peers=2, addresses_per_peer=4)


class Addresses(Target):
    """An address book, a pace of dials and an ear for announcements; new ones for each case."""

    def seeds(self) -> Iterator[Any]:
        hosts = ("/ip4/192.0.2.1", "/ip6/2001:db8::1", "/dns4/a.example", "/ip4/127.0.0.1", "/ip6/::ffff:10.0.0.1")
        texts = [f"{host}/tcp/4001" for host in hosts]
        named = [f"{text}/p2p/{PEER}" for text in texts]
        told = {f"a{number}": text for number, text in enumerate(named)}
        yield [[*texts, "/ip4/0.0.0.0/tcp/1", "/ip4/192.0.2.1/tcp/65536", "junk"], HERE, {}]
        yield [named, "aaaa/2222", {**told, "run": "0123456789abcdef", "machine": HERE}]
        yield [[f"/ip4/192.0.2.1/tcp/1/p2p/{OTHER}", "/ip6/fe80::1%eth0/tcp/1"], "", {"a0": "", "run": "x"}]

    def play(self, case: Any) -> None:
        match case:
            case [list(texts), machine, dict(properties)]:
                words = [it for it in texts[:WORDS] if isinstance(it, str)]
                self._learn(words, machine if isinstance(machine, str) else None)
                self._hear({str(key): it for key, it in properties.items() if it is None or isinstance(it, str)})

    def _learn(self, texts: list[str], machine: str | None) -> None:
        book, pace = AddressBook(LIMITS, HERE, lambda: INTERFACES), DialPace(LIMITS)
        book.learn(PEER, texts, machine)
        book.recall(OTHER, texts, texts[:1], machine)
        for parser in (parse_dialled, parse_listened, parse_announced):
            for text in texts:
                try:
                    told = [parser(text)]
                except ConfigError as trouble:
                    check_sentence(trouble)
                else:
                    announced([], told)
        for now, peer in enumerate((PEER, OTHER, PEER)):
            known = book.addresses(peer)
            if len(known) > 3 * LIMITS.addresses_per_peer:
                raise Finding(f"{len(known)} addresses of one peer")
            dialled, why = pace.admit(peer, known, book.known(peer).worked, float(now))
            pace.failed(peer, dialled, why or "nobody answers", float(now))
            for address in dialled:
                if parse(str(address)) != address or scope(address) == "nowhere":
                    raise Finding(f"{address} is dialled")
                book.worked(peer, address)

    def _hear(self, properties: dict[str, str | None]) -> None:
        found: list[tuple[str, tuple[str, ...], str, str]] = []
        discovery = Discovery(cast("Any", None), OWN, lambda *told: found.append(told), HERE)
        discovery._hear(properties)
        for peer, addresses, fingerprint, machine in found:
            if peer == OWN or len(addresses) > ADDRESSES or max(len(fingerprint), len(machine)) > WORD_CHARACTERS:
                raise Finding(f"more is heard of {peer} than may be")
            _describe(peer, addresses, "0123456789abcdef", HERE)


TARGET = Addresses
