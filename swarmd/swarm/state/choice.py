"""The choice among states that peers offer as one and the same: replicas' snapshots of a version, or checkpoints of it.

Honest replicas at one version have the same bytes, so two that differ tell of a fault or a lie. What most members of
the last record offer is taken; others count only where no member offers anything. Replicas on devices of different
kinds may differ in the last bits of a number; where these are the only ones that differ, it is no question of trust.
Pure.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from swarmd.swarm.wire.messages.presence import Card
from swarmd.values import PeerId, short

NAMED = 4  # peers in a sentence


@dataclass(frozen=True)
class Offer:
    """A state that a peer offers."""

    peer: PeerId
    state: str  # names its bytes
    kind: str = ""  # of the peer's device (`kind_of`)


@dataclass(frozen=True)
class Choice:
    """The state that is taken, if one is, and who offers which."""

    state: str  # "": none, as many members offer another one
    givers: tuple[PeerId, ...]  # of it; without a choice, of one that most offer
    others: tuple[PeerId, ...]  # those that offer anything else

    def differs(self, what: str) -> str:
        """Says whose state of `what` is another one than the rest's; "" if all are the same."""
        if not self.others:
            return ""
        end = f"it is taken from {_names(self.givers)}" if self.state else "none is taken until more peers agree"
        return f"of {what} {_names(self.others)} and {_names(self.givers)} offer different states: {end}"


def kind_of(card: Card | None) -> str:
    """Names the kind of a peer's device: on one kind the same numbers come out to the last bit. "": unknown."""
    return f"{card.device}/{card.device_name}/{card.torch}" if card is not None else ""


def voters(offers: Sequence[Offer], members: Collection[PeerId]) -> list[Offer]:
    """The offers that count: those of members; all, if no member offers anything."""
    return [it for it in offers if it.peer in members] or list(offers)


def choose(offers: Sequence[Offer], members: Collection[PeerId], own_kind: str = "") -> Choice:
    """The state that most of those who count offer; of several, the one of this peer's kind of device, if they differ
    because each is of other kinds.
    """
    counted = voters(offers, members)
    votes = Counter(it.state for it in counted)
    most = max(votes.values())
    first = [state for state, count in votes.items() if count == most]
    kinds = {state: {it.kind for it in counted if it.state == state} for state in first}
    best = min(first, key=lambda state: (own_kind not in kinds[state], state))
    apart = sum(map(len, kinds.values())) == len(frozenset().union(*kinds.values()))  # one state alone always is
    givers = tuple(sorted(it.peer for it in offers if it.state == best))
    others = tuple(sorted(it.peer for it in offers if it.state != best))
    return Choice(best if apart else "", givers, others)


def _names(peers: Sequence[PeerId]) -> str:
    """The first of some peers, for people."""
    named = ", ".join(short(peer) for peer in peers[:NAMED])
    return f"{named} and {len(peers) - NAMED} more" if len(peers) > NAMED else named
