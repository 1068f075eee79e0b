"""The round leader that a member obeys: of the highest ballot, then by leader order. The caller passes the time."""

from collections.abc import Callable, Container

from swarmd.errors import Outvoted, Overruled
from swarmd.swarm.membership.order import leader_order
from swarmd.swarm.wire.messages.common import NO_BALLOT, Ballot
from swarmd.values import PeerId, short

LEADER_SECONDS = 10.0  # a leader that hasn't said a word for so long may be replaced by any other of the same ballot


class RoundAuthority:
    """The highest ballot of the present step, and the leader that acts under it.

    Under the same ballot the later leader in the conductor's order wins, since the conductor went on to it; one that
    is gone or has fallen silent gives way to anyone.
    """

    def __init__(
        self,
        stage: int,
        is_live: Callable[[PeerId], bool] = lambda peer: True,
        members: Callable[[], Container[PeerId]] = lambda: (),
    ) -> None:
        self._stage, self._is_live = stage, is_live
        self._members = members  # of the stage in the last record
        self._step = 0
        self.ballot = NO_BALLOT
        self.leader: PeerId = ""
        self._heard = 0.0

    def admit(self, step: int, ballot: Ballot) -> None:
        """A question under this ballot. Raises Outvoted if a higher one was heard."""
        if step != self._step:
            self._step, self.ballot, self.leader = step, NO_BALLOT, ""
        if ballot < self.ballot:
            raise Outvoted(ballot.number, self.ballot.number)
        if ballot > self.ballot:
            self.ballot, self.leader = ballot, ""

    def give_way(self, step: int, ballot: Ballot, peer: PeerId, now: float) -> None:
        """Someone wants the round to begin again. Raises Overruled while another leads it under the same ballot."""
        self.admit(step, ballot)
        heard = now - self._heard < LEADER_SECONDS and self._is_live(self.leader)
        order = leader_order(step, self._stage, {self.leader, peer}, self._members())
        if heard and self.leader != "" and order[-1] != peer:
            raise Overruled(f"another leader has the round: {short(self.leader)}")

    def take(self, step: int, ballot: Ballot, leader: PeerId, now: float) -> None:
        """A leader leads. Raises Overruled while another does."""
        self.give_way(step, ballot, leader, now)
        self.leader, self._heard = leader, now
