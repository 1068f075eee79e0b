"""Other peers of a run, as a home remembers them from one life of its daemon to the next.

They are hints for finding the run again: whatever is damaged among them is left out. Pure; `home.py` reads and writes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from swarmd.values import PeerId

PEERS_REMEMBERED = 64  # the ones heard of last; any one of them that lives leads to all others
ADDRESSES_REMEMBERED = 12  # of one of them: what the address book keeps


@dataclass(frozen=True)
class KnownPeer:
    """One of them."""

    peer: PeerId
    addresses: tuple[str, ...]  # full multiaddrs; those that have worked first
    worked: int = 0  # so many of them have worked
    machine: str | None = None  # as its card said


def known_of(peers: Iterable[str]) -> tuple[KnownPeer, ...]:
    """The peers of bare multiaddrs, as older releases wrote and people give them; those without a peer are left out."""
    grouped: dict[PeerId, list[str]] = {}
    for text in peers:
        if peer := peer_of(text):
            grouped.setdefault(peer, []).append(text)
    return tuple(KnownPeer(peer, tuple(addresses)) for peer, addresses in grouped.items())


def peer_of(address: str) -> PeerId:
    """The peer of a multiaddr; "" if that names none."""
    return address.rpartition("/p2p/")[2] if "/p2p/" in address else ""


def parse_known(plain: Any) -> tuple[KnownPeer, ...]:
    """The peers in a file's JSON."""
    items = plain[:PEERS_REMEMBERED] if isinstance(plain, list) else []
    return tuple(known for item in items if (known := _parse_one(item)) is not None)


def _parse_one(item: Any) -> KnownPeer | None:
    if not isinstance(item, dict):
        return None
    peer, addresses, worked, machine = (item.get(key) for key in ("peer", "addresses", "worked", "machine"))
    if (
        not isinstance(peer, str)
        or not isinstance(addresses, list)
        or not (machine is None or isinstance(machine, str))
    ):
        return None
    mine = tuple(it for it in addresses if isinstance(it, str) and peer_of(it) == peer)[:ADDRESSES_REMEMBERED]
    return KnownPeer(peer, mine, worked if type(worked) is int else 0, machine) if peer and mine else None


def merge_known(newest: Sequence[KnownPeer], before: Iterable[KnownPeer]) -> tuple[KnownPeer, ...]:
    """Those who are known now, then those from before who aren't, as many as are remembered."""
    merged = {known.peer: known for known in newest}
    for known in before:
        merged.setdefault(known.peer, known)
    return tuple(merged.values())[:PEERS_REMEMBERED]
