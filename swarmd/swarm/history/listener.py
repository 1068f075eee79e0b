"""Events of a peer's history, for those who act on them."""

from swarmd.swarm.history.record import Record
from swarmd.swarm.wire.messages.commit import Commit
from swarmd.values import PeerId


class HistoryListener:
    """Hears of each event; a listener has methods of its own for those that concern it (`History.listen`)."""

    def on_record(self, record: Record) -> None:
        """A record was applied: this peer is one version further."""

    def on_replaced(self) -> None:
        """The state was replaced by another version's, or another history's."""

    def on_return(self, record: Record) -> None:
        """A return to an earlier version was decided, or the end of the run."""

    def on_foreign(self, peer: PeerId) -> None:
        """A peer has shown a record of another history."""

    def on_unshown(self, peer: PeerId) -> None:
        """A peer that says it is ahead has shown no record of its version."""

    def on_relay(self, source: PeerId, commit: Commit) -> None:
        """`source` has brought a record that the other replicas of this stage should hear of from here."""
