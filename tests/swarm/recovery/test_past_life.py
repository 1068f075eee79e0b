"""The ledger of an earlier life: what others have in their history stays, the rest is voided."""

from collections.abc import Container
from types import SimpleNamespace
from typing import Any

import pytest

from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.history.chain import Chain
from swarmd.swarm.history.record import Record, genesis_hash
from swarmd.swarm.recovery.past_life import mend_ledger
from swarmd.swarm.wire.messages.commit import AskRecord, Commit
from tests.swarm.cards import card
from tests.swarm.fake_links import FakeLinks
from tests.swarm.records import RUN, record, report


def following(count: int, **changes: Any) -> list[Record]:
    made: list[Record] = []
    for step in range(1, count + 1):
        parent = made[-1].hash if made else genesis_hash(RUN)
        made.append(record(report(0), report(1, **changes), step=step, parent=parent))
    return made


OURS, OTHER = following(8), following(8, tokens=65)


def hashes(records: list[Record]) -> dict[int, str]:
    return {it.step: it.hash for it in records}


async def voided(tail: dict[int, str], *, ours: list[Record], theirs: list[Record]) -> Any:
    """The part of a tail that is voided by a peer that knows the records `ours`, and another that has `theirs`."""
    everyone: dict[str, FakeLinks] = {}
    links, far = FakeLinks("me", everyone), FakeLinks("other", everyone)
    known = hashes(theirs)

    async def answer(peer: str, ask: AskRecord) -> Commit:
        return Commit(next(it for it in theirs if it.step == ask.step).raw if ask.step in known else b"")

    far.handle(AskRecord, answer)
    chain = Chain(genesis_hash(RUN))
    if ours:
        chain.move(ours[-1], 0)
        chain.learn({it.step: it for it in ours})
    cards = [card("me"), card("other", version=8)]
    membership: Any = SimpleNamespace(own=cards[0], kin=lambda: cards)
    context: Any = SimpleNamespace(run=RUN, links=links, membership=membership, history=SimpleNamespace(chain=chain))
    found: list[tuple[int, Container[str] | None]] = []
    store: Any = SimpleNamespace(void_ledger=lambda version, records: found.append((version, records)))
    await mend_ledger(context, store, tail)
    return found


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(OURS, []), ([], OURS), (OURS[6:], OURS[:6])],
    ids=["known here", "known to another", "known in part here"],
)
def test_only_what_is_of_another_history_is_voided(ours: list[Record], theirs: list[Record]) -> None:
    async def main() -> None:
        tail = {**hashes(OURS[:4]), **hashes(OTHER[4:6])}
        found = await voided(tail, ours=ours, theirs=theirs)
        assert found == [(4, frozenset(it.hash for it in OTHER[4:6]))]
        assert await voided(hashes(OURS), ours=ours, theirs=theirs) == []

    run_virtual(main())


def test_what_nobody_remembers_stays() -> None:
    async def main() -> None:
        assert await voided(hashes(OTHER[:3]), ours=[], theirs=OURS[5:]) == []
        assert await voided({}, ours=OURS, theirs=OURS) == []

    run_virtual(main())
