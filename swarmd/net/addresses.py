"""Multiaddrs as users and peers write them: which we can use, where we listen, and where peers can be dialled.

Only TCP: /ip4, /ip6, /dns, /dns4 or /dns6, then /tcp/<port>, then /p2p/<peer id>. Knows no libp2p. What a user wrote
wrongly is a ConfigError with a sentence; what a peer wrote wrongly is left out.
"""

import contextlib
import ipaddress
import re
import socket
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import psutil

from swarmd.errors import ConfigError
from swarmd.values import PeerId

# A peer's id has 52 characters (Ed25519) or about as many, and is a label of a name on the local network, which has at
# most 63.
_MULTIADDR = re.compile(
    r"/(?P<family>ip4|ip6|dns|dns4|dns6)/(?P<host>[0-9A-Za-z.:_%-]{1,253})/tcp/(?P<port>[0-9]{1,5})"
    r"(?:/p2p/(?P<peer>[1-9A-HJ-NP-Za-km-z]{20,63}))?"
)


Scope = Literal["loopback", "link-local", "private", "shared", "public", "name", "nowhere"]
"""From where an address can be dialled: this machine, one wire, a site's networks, those behind a carrier's NAT or of a
VPN (100.64.0.0/10), everywhere, whatever a name stands for, or not at all.
"""

IP = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface

SITES: tuple[Network, ...] = tuple(
    map(ipaddress.ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"))
)
"""RFC 1918 and RFC 4193: each site uses them for itself."""
SHARED = ipaddress.ip_network("100.64.0.0/10")  # RFC 6598
NOWHERE: tuple[Network, ...] = tuple(map(ipaddress.ip_network, ("0.0.0.0/8", "240.0.0.0/4", "::/128")))


class Address(NamedTuple):
    """A TCP multiaddr, taken apart."""

    family: str  # ip4 | ip6 | dns | dns4 | dns6
    host: str
    port: int
    peer: PeerId  # "" where none was given

    def __str__(self) -> str:
        return self.transport + (f"/p2p/{self.peer}" if self.peer else "")

    @property
    def transport(self) -> str:
        """The address without the peer id."""
        return f"/{self.family}/{self.host}/tcp/{self.port}"


def scope(address: Address) -> Scope:
    """The places from which an address can be dialled."""
    if address.family not in ("ip4", "ip6"):
        name = address.host.rstrip(".").lower()
        return "loopback" if name == "localhost" or name.endswith(".localhost") else "name"
    ip = ip_of(address)
    if ip.is_loopback:
        return "loopback"
    if ip.is_link_local:
        return "link-local"
    if ip.is_multicast or any(ip in network for network in NOWHERE):
        return "nowhere"
    if any(ip in network for network in SITES):
        return "private"
    return "shared" if ip in SHARED else "public"


def ip_of(address: Address) -> IP:
    """The IP of an ip4 or ip6 address; an IPv4 address written as IPv6 is the former."""
    ip = ipaddress.ip_address(address.host)
    return getattr(ip, "ipv4_mapped", None) or ip


def network_of(host: str) -> str:
    """The network of an IP, as large as one customer's may be: 24 bits, or 48 of IPv6; loopback is one. "" if it is no
    IP.
    """
    try:
        ip = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return ""
    ip = getattr(ip, "ipv4_mapped", None) or ip
    if ip.is_loopback:
        return "loopback"
    return str(ipaddress.ip_network((ip, 24 if ip.version == 4 else 48), strict=False))


def local_interfaces() -> list[Interface]:
    """This machine's addresses, each with the network that it is in. Raises OSError."""
    found = []
    for entry in [entry for entries in psutil.net_if_addrs().values() for entry in entries]:
        if entry.family in (socket.AF_INET, socket.AF_INET6) and entry.netmask:
            host = entry.address.partition("%")[0]
            prefix = int(ipaddress.ip_address(entry.netmask.partition("/")[0])).bit_count()
            found.append(ipaddress.ip_interface(f"{host}/{prefix}"))
    return found


def parse(text: str) -> Address | None:
    """None where it is not a TCP multiaddr that we can use."""
    match = _MULTIADDR.fullmatch(text)
    if match is None or int(match["port"]) > 65535:
        return None
    family, host = match["family"], match["host"]
    if family in ("ip4", "ip6"):
        try:
            ip = ipaddress.ip_address(host)
        except ValueError:
            return None
        if ip.version != int(family[2]) or "%" in host:
            return None
    elif ":" in host or "%" in host:
        return None
    return Address(family, host, int(match["port"]), match["peer"] or "")


def parse_dialled(text: str) -> Address:
    """An address a user wants to dial. Raises ConfigError."""
    address = parse(text)
    if address is None or not address.port:
        raise ConfigError(f"{text!r} can't be dialled; write an address as /ip4/<host>/tcp/<port>/p2p/<peer id>")
    if not address.peer:
        raise ConfigError(f"{text!r} does not say who is there; add /p2p/<peer id>, as the other daemon prints it")
    return address


def parse_listened(text: str) -> Address:
    """An address a user wants to listen at. Raises ConfigError."""
    address = parse(text)
    if address is None or address.peer or address.family not in ("ip4", "ip6"):
        raise ConfigError(f"can't listen at {text!r}; write an address as /ip4/0.0.0.0/tcp/<port>, with port 0 for any")
    return address


def parse_announced(text: str) -> Address:
    """An address at which a user says that others reach this daemon. Raises ConfigError."""
    address = parse(text)
    if address is None or address.peer or not worth_dialling(address, ""):
        raise ConfigError(
            f"can't announce {text!r}; write the address that others dial as /ip4/<host>/tcp/<port>, "
            "such as /ip4/203.0.113.5/tcp/4001"
        )
    return address


def dialable(host: str, port: int) -> list[Address]:
    """The hosts that others can dial when we listen at `host`: itself, or each interface's where it means all."""
    family = "ip6" if ":" in host else "ip4"
    if not ipaddress.ip_address(host).is_unspecified:
        return [Address(family, host, port, "")]
    wanted = socket.AF_INET6 if family == "ip6" else socket.AF_INET
    found = [
        ipaddress.ip_address(entry.address)
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family == wanted and "%" not in entry.address
    ]
    outside = [ip for ip in found if not ip.is_loopback and not ip.is_link_local]
    first = _outward(wanted)
    order = sorted(dict.fromkeys(outside or found), key=lambda ip: str(ip) != first)
    return [Address(family, str(ip), port, "") for ip in order]


def _outward(family: socket.AddressFamily) -> str:
    """This machine's address on its way out, which people should see first; "" where there is no such way."""
    with socket.socket(family, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(("192.0.2.1" if family == socket.AF_INET else "2001:db8::1", 9))  # sends nothing
        return str(probe.getsockname()[0])
    return ""


def announced(listened: Iterable[str], told: Sequence[Address] = ()) -> list[str]:
    """The addresses to tell others: the user's, else those where we listen, as the network gives them: with the real
    port, but perhaps 0.0.0.0.
    """
    if told:
        return [address.transport for address in told]
    found = [address for text in listened if (address := parse(text))]
    return [str(each) for address in found for each in dialable(address.host, address.port)]


def worth_dialling(address: Address, peer: PeerId) -> bool:
    """True if it is an address of this peer that somebody somewhere could dial."""
    return bool(address.port) and address.peer in ("", peer) and scope(address) != "nowhere"
