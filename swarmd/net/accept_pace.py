"""The pace at which connections are taken: whoever opens thousands of them gets a share, and keeps nobody else out.

A connection costs the more the further it comes: next to nothing before a byte of it is read, milliseconds for the
handshake that proves who is there, several times that for its streams and its greeting. So it is admitted twice: by its
address before the handshake (`admit`), and by its peer after that (`admit_peer`). What is refused is refused for the
moment: shares grow back at once, and a peer that was turned away may come again after seconds. Plain data; the caller
passes the time.
"""

import ipaddress
from collections import Counter, OrderedDict

from swarmd.net.limits import TransportLimits
from swarmd.net.shares import Shares
from swarmd.values import PeerId

SITE_BITS = 64  # of an IPv6 address: whoever has one of them has all that begin so
IN_ALL = 2.0  # times one address's share, for all addresses together from which no known peer has come
ALL = ""  # the key of that share


def site_of(host: str) -> str:
    """The address to which a connection counts; an IPv6 address counts as its network."""
    try:
        ip = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip)
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ipaddress.ip_network((ip, SITE_BITS), strict=False))


class AcceptPace:
    """The connections that others have opened lately, by their addresses and peers."""

    def __init__(self, limits: TransportLimits) -> None:
        self._limits = limits
        kept, shakes, strangers = limits.known_peers, limits.handshakes_per_s, limits.strangers_per_s
        self._handshakes = Shares(limits.handshakes_burst, shakes, kept)
        self._unfamiliar = Shares(limits.handshakes_burst * IN_ALL, shakes * IN_ALL, 1)
        self._strangers = Shares(limits.strangers_burst, strangers, kept)
        self._all_strangers = Shares(limits.strangers_burst * IN_ALL, strangers * IN_ALL, 1)
        self._returns = Shares(limits.returns_burst, limits.returns_per_s, kept)
        self._open = Counter[str]()  # connections, those in their handshake too
        self._familiar: OrderedDict[str, None] = OrderedDict()  # addresses from which known peers have come
        self._away: OrderedDict[PeerId, float] = OrderedDict()  # until when

    def opened(self, host: str) -> None:
        """Counts a connection from there, until it is `closed`."""
        self._open[site_of(host)] += 1

    def closed(self, host: str) -> None:
        site = site_of(host)
        self._open[site] -= 1
        if not self._open[site]:
            del self._open[site]

    def admit(self, host: str, now: float) -> bool:
        """Tells if a connection from there may begin its handshake; it counts as one then."""
        site = site_of(host)
        if self._open[site] >= self._limits.connections_per_address or not self._handshakes.take(site, now):
            return False
        return site in self._familiar or self._unfamiliar.take(ALL, now)

    def admit_peer(self, peer: PeerId, host: str, now: float, *, known: bool) -> bool:
        """Tells if a peer that has proved who it is may go on. One that is not known shares with all that come from
        where it is.
        """
        if now < self._away.get(peer, now):
            return False
        if known:
            self._note(self._familiar, site_of(host))
            return self._returns.take(peer, now)
        return self._strangers.take(site_of(host), now) and self._all_strangers.take(ALL, now)

    def turn_away(self, peer: PeerId, now: float) -> None:
        """Admits a peer no more for a while: nothing can come of its connections."""
        self._away[peer] = now + self._limits.turned_away_s
        self._away.move_to_end(peer)
        while len(self._away) > self._limits.known_peers:
            self._away.popitem(last=False)

    def _note(self, kept: OrderedDict[str, None], key: str) -> None:
        kept[key] = None
        kept.move_to_end(key)
        while len(kept) > self._limits.known_peers:
            kept.popitem(last=False)
