"""The surroundings of a peer's parts, in one object: their constructors name only what is special to them."""

import random
from dataclasses import dataclass, field

from swarmd.config import LimitsConfig, RunConfig
from swarmd.swarm.history.handouts import Handouts
from swarmd.swarm.history.history import History
from swarmd.swarm.membership.table import Membership
from swarmd.swarm.tasks import Tasks
from swarmd.swarm.wire.links import Links
from swarmd.swarm.wire.own_card import OwnCard


@dataclass(frozen=True)
class PeerContext:
    """One peer's surroundings: the same objects from its start to its end. Pure rules take none of it."""

    run: RunConfig
    limits: LimitsConfig
    links: Links
    membership: Membership
    history: History
    tasks: Tasks  # that end with the peer
    rng: random.Random
    handouts: Handouts = field(default_factory=Handouts)

    @property
    def own(self) -> OwnCard:
        """The peer's own card."""
        return self.links.own
