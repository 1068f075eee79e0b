"""The ledger of a peer's earlier life: lines of a history that was given up while the peer was away are voided."""

from collections.abc import Mapping

from swarmd.swarm.history.parting import ask_record
from swarmd.swarm.history.peer_context import PeerContext
from swarmd.swarm.ports import Store


async def mend_ledger(context: PeerContext, store: Store, tail: Mapping[int, str]) -> None:
    """Voids those of the last lines of an earlier life that aren't of the others' history. `tail`: of each line the
    hash of its record, by step.
    """
    membership, chain = context.membership, context.history.chain
    others = [card for card in membership.kin() if card.peer != membership.own.peer]
    newest = max(others, key=lambda card: (card.version, card.peer), default=None)
    stale = list[str]()
    low = 0
    for step in sorted(tail, reverse=True):
        known = chain.hash_at(step)
        if not known and newest is not None:  # this peer itself has come up to the others by now, but by a leap
            record = await ask_record(context, newest.peer, step)
            known = record.hash if record is not None else ""
        if known in ("", tail[step]):  # further back nobody remembers, or all is the same
            low = step
            break
        stale.append(tail[step])
    if stale:
        store.void_ledger(low, frozenset(stale))
