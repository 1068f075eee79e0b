"""The pace of dials: strangers name any number of addresses, and nobody may have others dial them at will.

An address at which a peer couldn't be reached is left alone for a pause that doubles with each time; it stays short for
a peer that was connected once. Addresses that have never worked share so many dials a second, and where someone was
dialled a moment ago nobody else is dialled. Plain data; the caller passes the time.
"""

from collections import OrderedDict
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field

from swarmd.net.addresses import Address
from swarmd.net.limits import TransportLimits
from swarmd.values import PeerId

PLACES_KEPT = 16  # of a peer's addresses that failed: more than are known of it at a time


@dataclass
class Tried:
    """One peer's dials."""

    failures: int = 0  # in a row
    places: tuple[Address, ...] = ()  # where it was not, the last ones
    next_at: float = 0.0  # no dial to these before
    problem: str = ""  # of the last one
    met: bool = False  # there was a connection with it once


@dataclass
class DialPace:
    """The latest dials and their success. Bounded: the peers that were dialled or met last are kept."""

    limits: TransportLimits
    _tried: OrderedDict[PeerId, Tried] = field(default_factory=OrderedDict)
    _places: OrderedDict[tuple[str, int], float] = field(default_factory=OrderedDict)  # dialled -> when
    _room: float = -1.0  # addresses that never worked of which so many may be dialled now; -1: none was yet
    _looked: float = 0.0

    def admit(
        self, peer: PeerId, addresses: Iterable[Address], worked: Container[Address], now: float
    ) -> tuple[list[Address], str]:
        """The addresses that may be dialled now, which count as dialled; if none, why not. Those that have worked are
        the peer's beyond doubt, and are only spared while it pauses.
        """
        tried, places = self._tried.get(peer) or Tried(), self._recent(now)
        addresses = [it for it in addresses if now >= tried.next_at or it not in tried.places]
        if not addresses:
            return [], f"{tried.problem}; it is dialled again in {tried.next_at - now:.0f} s"
        free = [it for it in addresses if it in worked or (it.host, it.port) not in places]
        if not free:
            return [], f"{peer} can't be reached: its addresses were dialled a moment ago"
        if not self._take(sum(it not in worked for it in free), now):
            free = [it for it in free if it in worked]
        if not free:
            return [], f"{peer} can't be reached: too many are to be dialled that may not be there"
        places.update({(it.host, it.port): now for it in free})
        return free, ""

    def failed(self, peer: PeerId, addresses: Sequence[Address], problem: str, now: float) -> None:
        """Notes that a peer couldn't be reached there."""
        tried = self._touch(peer)
        ceiling = self.limits.dial_pause_met_s if tried.met else self.limits.dial_pause_ceiling_s
        tried.next_at = now + min(ceiling, self.limits.dial_pause_s * 2.0 ** min(tried.failures, 30))
        tried.failures += 1
        tried.places = tuple(dict.fromkeys((*addresses, *tried.places)))[:PLACES_KEPT]
        tried.problem = problem

    def met(self, peer: PeerId) -> None:
        """Notes that there is a connection with it, by either side's dial."""
        self._tried[peer] = Tried(met=True)
        self._tried.move_to_end(peer)
        self._forget()

    def _touch(self, peer: PeerId) -> Tried:
        tried = self._tried.setdefault(peer, Tried())
        self._tried.move_to_end(peer)
        self._forget()
        return tried

    def _forget(self) -> None:
        while len(self._tried) > self.limits.known_peers:
            self._tried.popitem(last=False)

    def _recent(self, now: float) -> OrderedDict[tuple[str, int], float]:
        while self._places and now - next(iter(self._places.values())) >= self.limits.dial_spacing_s:
            self._places.popitem(last=False)
        return self._places

    def _take(self, count: int, now: float) -> bool:
        """A share for so many addresses that never worked."""
        burst, grown = float(self.limits.dials_burst), (now - self._looked) * self.limits.dials_per_s
        self._room = burst if self._room < 0 else min(burst, self._room + grown)
        self._looked = now
        if self._room < count:
            return False
        self._room -= count
        return True
