"""The end of a run that has failed: too many steps in a row were skipped, or there is no way back from a broken one.

Everyone finds so from the same record (`History.failure`) and ends at the same version; it is no checkpoint.
"""

from swarmd.errors import RunEnded
from swarmd.swarm.history.history import History
from swarmd.swarm.membership.states import AT_WORK
from swarmd.swarm.membership.table import Membership
from swarmd.swarm.peer.ending import LINGER_SECONDS
from swarmd.swarm.state.disks import Disks


async def fail(membership: Membership, history: History, disks: Disks) -> None:
    """Stays for those who haven't the last commit yet; then raises RunEnded."""
    record, version = history.record, history.version
    assert record is not None, "the untrained version has not failed"

    def everyone_has_it() -> bool:
        others = [member.card for member in membership.members().values() if not member.suspect]
        there = [card for card in others if card.state in (*AT_WORK, "joining")]
        return not there if history.ended is not None else all(card.version >= version for card in there)

    await membership.changed.until(everyone_has_it, LINGER_SECONDS)
    # What the skipped steps began from led to nothing else: the one before it is good.
    below, stage = record.step - record.skips, membership.own.stage
    good = [it.version for it in await disks.checkpoints() if it.stage == stage and it.version < below]
    raise RunEnded(f"the run ends at version {version}: {history.failure}", max(good, default=None))
