"""The addresses of peers: those that each names, those that have worked, and the order in which they are tried.

A peer says all its addresses; which of them lead to it depends on who dials. So everyone keeps all, and each time
leaves out those that can't be the peer's from here: another machine's loopback, a private network that this machine is
not in, this machine's own address. What has worked is the peer's beyond doubt: its key was checked. It comes first.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from swarmd.net.addresses import (
    SHARED,
    SITES,
    Address,
    Interface,
    ip_of,
    local_interfaces,
    parse,
    scope,
    worth_dialling,
)
from swarmd.net.limits import TransportLimits
from swarmd.values import PeerId, network_of

WORKED = 4  # addresses of a peer that worked once; a laptop is at home, at work, behind a tunnel
READ = 64  # addresses that a peer says at once; a machine with containers has dozens


@dataclass
class Known:
    """The known addresses of one peer."""

    machine: str | None = None  # as its card says; None: no card has come, so what is said was told by a person
    said: tuple[Address, ...] = ()  # the newest first
    worked: tuple[Address, ...] = ()  # the newest first

    def all(self) -> tuple[Address, ...]:
        """All of them, those that have worked first."""
        return tuple(dict.fromkeys((*self.worked, *self.said)))


@dataclass
class AddressBook:
    """The addresses of all peers, bounded: the peers heard of last are kept, and the newest addresses of each."""

    limits: TransportLimits
    machine: str = ""  # this daemon's own
    interfaces: Callable[[], Iterable[Interface]] = local_interfaces
    _known: OrderedDict[PeerId, Known] = field(default_factory=OrderedDict)

    def learn(self, peer: PeerId, addresses: Sequence[str], machine: str | None = None) -> None:
        """A peer's addresses, as its card says, or as somebody told this daemon (`machine` is None then)."""
        fresh = _of_peer(peer, addresses[:READ])
        known = self._take(peer)
        if machine is not None:
            known.machine = machine
        if fresh or known.all():
            said = dict.fromkeys((*self._ranked(fresh, known.machine), *known.said))
            known.said = tuple(said)[: self.limits.addresses_per_peer]
            self._keep(peer, known)

    def recall(self, peer: PeerId, addresses: Sequence[str], worked: Sequence[str], machine: str | None) -> None:
        """Takes over an earlier life's knowledge of a peer."""
        self.learn(peer, addresses, machine)
        known = self._take(peer)
        known.worked = tuple(dict.fromkeys((*known.worked, *_of_peer(peer, worked))))[:WORKED]
        self._keep(peer, known)

    def worked(self, peer: PeerId, address: Address) -> None:
        """Notes that this peer answered there."""
        known = self._take(peer)
        known.worked = tuple(dict.fromkeys((address._replace(peer=peer), *known.worked)))[:WORKED]
        self._keep(peer, known)

    def _take(self, peer: PeerId) -> Known:
        return self._known.pop(peer, None) or Known()

    def _keep(self, peer: PeerId, known: Known) -> None:
        if known.all():
            self._known[peer] = known
        while len(self._known) > self.limits.known_peers:
            self._known.popitem(last=False)

    def known(self, peer: PeerId) -> Known:
        """All that is known of a peer's addresses, also those that are of no use here and now."""
        return self._known.get(peer, Known())

    def is_known(self, peer: PeerId) -> bool:
        """Tells if a peer has answered somewhere, or has shown its card."""
        known = self.known(peer)
        return bool(known.worked) or known.machine is not None

    def addresses(self, peer: PeerId) -> tuple[Address, ...]:
        """The addresses at which to dial a peer from here, most promising first."""
        known = self.known(peer)
        return tuple(dict.fromkeys((*known.worked, *self._useful(known.said, known.machine))))

    def _useful(self, said: Sequence[Address], machine: str | None) -> list[Address]:
        interfaces, shares = list(self.interfaces()), self._shares(machine)
        order = {address: _rank(address, interfaces, shares) for address in said}
        useful = [address for address in said if order[address] < SITE]
        if not useful:  # its site may have several networks, with ways between them
            useful = [address for address in said if order[address] == SITE]
        return sorted(useful, key=order.__getitem__)

    def _ranked(self, said: Sequence[Address], machine: str | None) -> list[Address]:
        """All of them; those that are of no use here last, where they are cut off if there are too many."""
        interfaces, shares = list(self.interfaces()), self._shares(machine)
        return sorted(said, key=lambda address: _rank(address, interfaces, shares))

    def _shares(self, machine: str | None) -> bool:
        """True if the loopback of that machine is this daemon's, too."""
        return machine is None or network_of(machine) == network_of(self.machine) != ""


SITE, NEVER = 6, 7  # ranks: dialled where there is no better one; not dialled


def _rank(address: Address, interfaces: Sequence[Interface], shares: bool) -> int:
    """The rank of an address as seen from here; under SITE it is dialled."""
    kind = scope(address)
    if kind == "loopback":
        return 0 if shares else NEVER
    if kind == "name":
        return 4
    if kind in ("link-local", "nowhere"):
        return NEVER
    ip = ip_of(address)
    if any(ip == own.ip for own in interfaces):
        return 1 if shares else NEVER  # an address of one's own is never another machine's: each has its docker0
    if kind == "public":
        return 3
    if any(own.version == ip.version and ip in own.network for own in interfaces):
        return 2
    if kind == "shared":  # a VPN gives each machine a network of one address
        return 5 if any(own.ip in SHARED for own in interfaces) else NEVER
    return SITE if any(ip in site and own.ip in site for site in SITES for own in interfaces) else NEVER


def _of_peer(peer: PeerId, addresses: Iterable[str]) -> list[Address]:
    parsed = [address for text in addresses if (address := parse(text)) is not None]
    return [address._replace(peer=peer) for address in parsed if worth_dialling(address, peer)]
