"""Where two histories part, by the records that others give."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.errors import Refused
from swarmd.swarm.history.parting import ask_record, common_version, find_fork
from swarmd.swarm.history.record import record_to_plain
from swarmd.swarm.history.record_format import write_record
from swarmd.swarm.wire.messages.commit import AskRecord, Commit
from tests.swarm.contexts import peer_context
from tests.swarm.fake_links import FakeLinks
from tests.swarm.records import RUN, record
from tests.swarm.recovery.two_histories import OURS, Peer, following


@given(st.integers(0, 300), st.integers(1, 300), st.integers(0, 300))
async def test_the_fork_is_found_wherever_it_is(common: int, more: int, forgotten: int) -> None:
    newest, asked = common + more, []

    async def theirs(version: int) -> str:
        asked.append(version)
        return f"c{version}" if version <= common else f"t{version}"

    def ours(version: int) -> str:
        return "" if version < forgotten else f"c{version}" if version <= common else f"o{version}"

    found = await find_fork(ours, theirs, newest)
    if forgotten > newest:
        assert found is None
    else:
        first = max(common + 1, forgotten)
        assert found == (first - 1, first)
    assert len(asked) <= 11
    assert all(version >= forgotten for version in asked), "what isn't remembered here tells nothing"
    assert await find_fork(ours, theirs, common) is None


async def test_the_untrained_version_is_common_to_all() -> None:
    async def theirs(version: int) -> str:
        raise AssertionError("nobody is asked for it")

    assert await find_fork(lambda version: "genesis", theirs, 0) is None


@pytest.mark.parametrize(
    ("given", "taken"),
    [({}, True), ({"step": 3}, False), ({"step": "two"}, False), (None, False)],
    ids=["that step's", "another step's", "it makes no sense", "none"],
)
async def test_a_record_counts_if_it_is_of_the_step_that_was_asked_for(
    given: dict[str, Any] | None, taken: bool
) -> None:
    everyone: dict[str, FakeLinks] = {}
    of = record(step=(given or {}).get("step", 2)) if (given or {}).get("step") == 3 else record(step=2)

    async def answer(peer: str, ask: AskRecord) -> Commit:
        if given is None:
            raise Refused("not here")
        return Commit(write_record({**record_to_plain(of), **given}))

    FakeLinks("x", everyone).handle(AskRecord, answer)
    context = peer_context(run=RUN, links=FakeLinks("a", everyone))
    assert await ask_record(context, "x", 2) == (of if taken else None)
    assert await ask_record(context, "gone", 2) is None


@pytest.mark.parametrize(
    ("given", "common"),
    [
        ({"x": [1, 2, 3]}, 4),  # what isn't given counts as common
        ({"x": [1, 2, 3, 4]}, 3),
        ({"x": [], "y": [1, 2, 3, 4]}, 3),  # the first that gives a record
        ({"x": [1, 2]}, 4),
        ({}, 4),
    ],
)
async def test_the_version_in_common_is_found_with_those_that_give_records(
    given: dict[str, list[int]], common: int
) -> None:
    everyone: dict[str, FakeLinks] = {}
    ours, theirs = Peer("a", 0, OURS, everyone), following(OURS[:3], 1, digest="other")

    def answering(steps: list[int]) -> Callable[[str, AskRecord], Awaitable[Commit]]:
        async def answer(peer: str, ask: AskRecord) -> Commit:
            if ask.step not in steps:
                raise Refused("not here")
            return Commit(theirs[ask.step - 1].raw)

        return answer

    for name, steps in given.items():
        FakeLinks(name, everyone).handle(AskRecord, answering(steps))
    context = peer_context(run=RUN, links=ours.links, history=ours.history)
    assert await common_version(context, given) == common
