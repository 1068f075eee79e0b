"""The rules of consensus on a record, against a network that loses, repeats and reorders, with many proposers."""

import dataclasses
import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from swarmd.swarm.history.consensus import (
    ACCEPTORS,
    BALLOT_REACH,
    STEPS_AHEAD,
    Acceptor,
    BallotRange,
    decided_in,
    highest_ballot,
    is_majority,
    plan_acceptors,
    plan_proposal,
)
from swarmd.swarm.history.record import Record
from swarmd.swarm.wire.messages.commit import Accepted, Promise
from swarmd.swarm.wire.messages.common import NO_BALLOT, Ballot
from swarmd.values import Buffer
from tests.swarm.records import record, report


def of(heads: int, others: int) -> Record:
    return record(
        report(0, members=tuple(f"h{n}" for n in range(heads))),
        report(1, members=tuple(f"t{n}" for n in range(others))),
    )


def test_a_number_counts_if_an_honest_successor_can_have_reached_it() -> None:
    it = BallotRange()
    assert it.admits(5, BALLOT_REACH, 4)
    assert it.admits(5, 1, 4), "lower ones are the acceptors' business"
    assert it.admits(5, 2 * BALLOT_REACH, 4)
    assert not it.admits(5, 3 * BALLOT_REACH + 1, 4)
    assert not it.admits(6, BALLOT_REACH + 1, 4), "each step has its own"


@given(st.integers(1, 1 << 24), st.integers(0, 1 << 24))
def test_whoever_tries_again_gets_through_however_long_it_has_counted(known: int, above: int) -> None:
    it, tries = BallotRange({5: known}), 1
    while not it.admits(5, known + above, 4):
        tries += 1
    assert tries == max(1, -(-above // BALLOT_REACH))


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 1 << 62)), max_size=20))
def test_a_number_that_was_made_up_wins_one_reach_at_most(said: list[tuple[int, int]]) -> None:
    it = BallotRange()
    for step, number in said:
        before = dict(it.highest)
        counts = it.admits(step, number, 4)
        assert counts == (step <= 4 or number <= before.get(step, 0) + BALLOT_REACH)
        for at, top in it.highest.items():
            assert before.get(at, 0) <= top <= before.get(at, 0) + BALLOT_REACH
        assert set(it.highest) <= set(range(5, 5 + STEPS_AHEAD))


def test_numbers_of_steps_that_are_over_are_forgotten() -> None:
    it = BallotRange()
    assert it.admits(5, 7, 4)
    assert it.admits(6, 8, 5)
    assert it.highest == {6: 8}
    assert it.admits(5, 1 << 61, 5), "it has no effect any more"


def test_the_founder_alone_decides_the_first_record() -> None:
    assert plan_acceptors(1, None, "founder") == ("founder",)
    assert plan_acceptors(1, None, "") == ()


@given(st.integers(0, 14), st.integers(0, 14), st.integers(2, 99))
def test_acceptors_are_members_heads_first_and_nine_at_most(heads: int, others: int, step: int) -> None:
    before = of(heads, others)
    chosen = plan_acceptors(step, before, "founder")
    assert len(chosen) == len(set(chosen)) == min(ACCEPTORS, heads + others)
    assert set(chosen) <= set(before.members())
    assert [peer[0] for peer in chosen] == sorted(peer[0] for peer in chosen), "h before t"
    assert sum(peer[0] == "h" for peer in chosen) == min(heads, ACCEPTORS)
    shuffled = dataclasses.replace(
        before, stages=tuple(dataclasses.replace(it, members=it.members[::-1]) for it in before.stages)
    )
    assert plan_acceptors(step, shuffled, "another") == chosen


def test_the_acceptors_change_from_step_to_step() -> None:
    assert len({plan_acceptors(step, of(20, 0), "") for step in range(2, 12)}) == 10


@given(st.integers(0, 12), st.integers(0, 12), st.integers(1, 12))
def test_two_majorities_share_a_peer(one: int, other: int, total: int) -> None:
    if is_majority(one, total) and is_majority(other, total):
        assert one + other > total


def test_no_ballot_is_granted_twice_not_even_to_its_owner() -> None:
    acceptor = Acceptor()
    assert acceptor.prepare(Ballot(1, "b")).granted
    assert not acceptor.prepare(Ballot(1, "b")).granted, "a restarted peer must not speak under its old ballot"
    assert not acceptor.prepare(Ballot(1, "c")).granted, "number 1 twice would let two begin the step afresh"
    assert acceptor.prepare(Ballot(2, "a")).granted
    assert not acceptor.accept(Ballot(1, "b"), b"v1").granted
    assert acceptor.accept(Ballot(2, "a"), b"v2").granted
    assert acceptor.accept(Ballot(2, "a"), b"v2").granted, "an answer may be lost and the question repeated"
    assert acceptor.prepare(Ballot(3, "b")) == Promise(True, Ballot(3, "b"), Ballot(2, "a"), b"v2")


def test_what_was_accepted_under_the_highest_ballot_is_proposed() -> None:
    promises = [
        Promise(True, Ballot(9, "x"), Ballot(2, "a"), b"v2"),
        Promise(True, Ballot(9, "x"), NO_BALLOT, b""),
        Promise(True, Ballot(9, "x"), Ballot(3, "a"), b"v3"),
        Promise(False, Ballot(12, "y"), Ballot(7, "y"), b"v7"),
    ]
    assert plan_proposal(promises) == b"v3"
    assert plan_proposal(promises[1:2]) == b""
    assert highest_ballot(promises) == Ballot(12, "y")
    given = dict(zip("abcd", promises, strict=True))
    assert decided_in(given) == ("", b"")
    assert decided_in({**given, "e": Promise(False, NO_BALLOT, NO_BALLOT, b"v5")}) == ("e", b"v5")


# ------------------------------------------------------------------------------------------------- a dumb network


@dataclasses.dataclass
class Proposer:
    """A conductor as dumb as can be: it begins again under another ballot at any time, and may restart without its
    memory, with another record, and with ballots that it has used before.
    """

    name: str
    value: Buffer
    number: int = 0
    lives: int = 0
    promises: dict[int, Promise] = dataclasses.field(default_factory=dict)
    proposed: Buffer | None = None
    accepted: set[int] = dataclasses.field(default_factory=set)


def play(draw: random.Random, acceptors: int, proposers: int, turns: int) -> list[Buffer]:
    """Every value that a proposer saw a majority accept."""
    there = [Acceptor() for _ in range(acceptors)]
    them = [Proposer(f"p{n}", b"%d" % n) for n in range(proposers)]
    flying: list[tuple[str, int, int, int, Ballot, Any]] = []  # what, proposer, its life, acceptor, ballot, content
    decided: list[Buffer] = []
    for _ in range(turns):
        who = draw.randrange(proposers)
        it = them[who]
        if not flying or draw.random() < 0.04:
            if draw.random() < 0.1:
                it.lives, it.number, it.value = it.lives + 1, 0, draw.randbytes(8)
            it.number += draw.randint(1, 3)
            it.promises, it.proposed, it.accepted = {}, None, set()
            flying += [("prepare", who, it.lives, n, Ballot(it.number, it.name), None) for n in range(acceptors)]
            continue
        message = flying[draw.randrange(len(flying))]
        if draw.random() < 0.85:  # else it is delivered and flies on: a copy
            flying.remove(message)
        if draw.random() < 0.15:
            continue  # lost
        what, who, life, n, ballot, content = message
        it = them[who]
        mine = (life, ballot) == (it.lives, Ballot(it.number, it.name))
        if what == "prepare":
            flying.append(("promise", who, life, n, ballot, there[n].prepare(ballot)))
        elif what == "accept":
            flying.append(("accepted", who, life, n, ballot, there[n].accept(ballot, content)))
        elif what == "promise" and mine and isinstance(content, Promise) and content.granted:
            it.promises[n] = content
            if it.proposed is None and is_majority(len(it.promises), acceptors):
                it.proposed = plan_proposal(it.promises.values()) or it.value
                flying += [("accept", who, life, m, ballot, it.proposed) for m in range(acceptors)]
        elif what == "accepted" and mine and isinstance(content, Accepted) and content.granted:
            it.accepted.add(n)
            if is_majority(len(it.accepted), acceptors) and it.proposed is not None:
                decided.append(it.proposed)
    return decided


def test_two_different_records_are_never_decided() -> None:
    decisions = 0
    for seed in range(1500):
        draw = random.Random(seed)
        decided = play(draw, draw.randint(1, 9), draw.randint(1, 4), 300)
        assert all(value == decided[0] for value in decided), f"seed {seed}"
        decisions += bool(decided)
    assert decisions > 500, "most of the games must come to something"
