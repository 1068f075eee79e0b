"""The place where two histories part, found by the records that others give."""

import logging
from collections.abc import Awaitable, Callable, Iterable

from swarmd.errors import NO_ANSWER
from swarmd.swarm.history.peer_context import PeerContext
from swarmd.swarm.history.record import Record
from swarmd.swarm.history.record_codec import record_from_raw
from swarmd.swarm.wire.messages.commit import AskRecord
from swarmd.values import PeerId, short

log = logging.getLogger(__name__)

RECORD_SECONDS = 5.0  # to answer with a record


async def find_fork(
    ours: Callable[[int], str], theirs: Callable[[int], Awaitable[str]], upto: int
) -> tuple[int, int] | None:
    """The newest version that two histories have in common, and the first at which they differ; None if they agree at
    `upto`. Both give the hash of a version, "" if they don't remember it: it counts as common then.
    """
    low, high = 0, upto

    async def agree(version: int) -> bool:
        mine = ours(version)
        their = await theirs(version) if mine else ""
        return not their or mine == their

    if upto < 1 or await agree(upto):
        return None
    while low + 1 < high:  # they agree at `low` and differ at `high`
        middle = (low + high) // 2
        low, high = (middle, high) if await agree(middle) else (low, middle)
    return low, high


async def ask_record(context: PeerContext, peer: PeerId, step: int) -> Record | None:
    """The record of a step that a peer has in its history; None if it gives none."""
    try:
        commit = await context.links.ask(peer, AskRecord(step), deadline_s=RECORD_SECONDS)
        record = record_from_raw(context.run, commit.record)
    except NO_ANSWER as trouble:
        log.debug("no record of step %d from %s: %s", step, short(peer), trouble)
        return None
    return record if record.step == step else None


async def common_version(context: PeerContext, peers: Iterable[PeerId]) -> int:
    """The newest version that this peer has in common with the history of others, up to its own; what none of them
    remembers counts as common.
    """
    history, others = context.history, tuple(peers)

    async def theirs(version: int) -> str:
        for peer in others:
            if (record := await ask_record(context, peer, version)) is not None:
                return record.hash
        return ""

    fork = await find_fork(history.chain.hash_at, theirs, history.version)
    return history.version if fork is None else fork[0]
