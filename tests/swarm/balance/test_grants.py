"""Who may move, in a table, and against a dumb twin that tries every set of moves."""

import itertools
import random

import pytest

from swarmd.swarm.balance.grants import able_alone, objection, plan_moves
from swarmd.swarm.history.record import Move
from tests.swarm.cards import card
from tests.swarm.records import record, report

TWO = {0: ("a", "b"), 1: ("c", "d"), 2: ("e",)}


def test_one_of_two_replicas_may_go() -> None:
    assert plan_moves([Move("a", 0, 1)], TWO) == (Move("a", 0, 1),)


def test_of_two_replicas_that_wish_at_once_the_first_goes() -> None:
    assert plan_moves([Move("b", 0, 1), Move("a", 0, 2)], TWO) == (Move("b", 0, 1),)


def test_moves_of_several_stages_are_granted_together() -> None:
    assert plan_moves([Move("d", 1, 0), Move("a", 0, 2)], TWO) == (Move("a", 0, 2), Move("d", 1, 0))


def test_two_lone_replicas_do_not_change_places() -> None:
    """Each would arrive without the state that the other one took away."""
    assert plan_moves([Move("a", 0, 1), Move("b", 1, 0)], {0: ("a",), 1: ("b",)}) == ()


@pytest.mark.parametrize(
    ("wish", "why"),
    [
        (Move("e", 2, 0), "stage 2 would be left with 0 replicas, and it needs 1"),
        (Move("a", 0, 3), "this run has no stage 3: its stages are 0 to 2"),
        (Move("a", 0, -1), "this run has no stage -1: its stages are 0 to 2"),
        (Move("a", 0, 0), "it serves stage 0 already"),
        (Move("a", 1, 2), "it is not known as a replica of stage 1"),
        (Move("x", 0, 2), "it is not known as a replica of stage 0"),
        (Move("a", 7, 2), "it is not known as a replica of stage 7"),
    ],
)
def test_a_wish_is_refused_with_a_sentence(wish: Move, why: str) -> None:
    assert objection(wish, TWO) == why
    assert plan_moves([wish], TWO) == ()


def test_nobody_moves_twice_in_a_record() -> None:
    assert plan_moves([Move("a", 0, 1), Move("a", 0, 2)], TWO) == (Move("a", 0, 1),)
    assert objection(Move("a", 0, 2), TWO, [Move("a", 0, 1)]) == "another move of it is granted already"


@pytest.mark.parametrize(
    ("holders", "version", "able"),
    [(("a", "b"), 2, ["a", "b"]), (("a",), 2, ["a"]), (("a",), 3, ["a", "b"]), ((), 2, ["a"])],
    ids=["both have the gradient", "one came during the step", "has applied it", "skipped: who took part"],
)
def test_who_can_go_on_alone(holders: tuple[str, ...], version: int, able: list[str]) -> None:
    said, staying = report(0, members=("a",), holders=holders), [card("a", version=2), card("b", version=version)]
    assert able_alone(staying, 3, said) == able
    assert able_alone(staying, 3, record(said, report(1)).stages[0]) == able, "the record says the same"


def holds(moves: tuple[Move, ...], replicas: dict[int, tuple[str, ...]], minimum: int) -> bool:
    """The rules, said once more: of a set of moves as a whole."""
    if len({move.peer for move in moves}) < len(moves):
        return False
    for move in moves:
        if move.target not in replicas or move.target == move.source or move.peer not in replicas.get(move.source, ()):
            return False
    left = {stage: set(peers) for stage, peers in replicas.items()}
    for move in moves:
        left[move.source].discard(move.peer)
    return all(len(left[move.source]) >= minimum for move in moves)


def twin(wishes: list[Move], replicas: dict[int, tuple[str, ...]], minimum: int) -> tuple[Move, ...]:
    """The set of wishes that holds and prefers earlier ones, out of all sets."""
    best: tuple[int, ...] = ()
    chosen: tuple[Move, ...] = ()
    for taken in itertools.product((1, 0), repeat=len(wishes)):
        moves = tuple(wish for wish, yes in zip(wishes, taken, strict=True) if yes)
        if holds(moves, replicas, minimum) and taken > best:
            best, chosen = taken, moves
    return tuple(sorted(chosen, key=lambda move: move.peer))


def test_it_grants_what_a_dumb_twin_grants() -> None:
    rng, most = random.Random(1), 0
    for _ in range(1500):
        names = list("abcdefgh")
        rng.shuffle(names)
        stages = rng.randint(1, 4)
        replicas = {stage: tuple(names.pop() for _ in range(rng.randint(0, 2))) for stage in range(stages)}
        minimum = rng.randint(1, 2)
        peers = [(peer, stage) for stage, having in replicas.items() for peer in having]
        wishes = []
        for _ in range(rng.randint(0, 5)):
            peer, source = rng.choice([*peers, ("x", 0)])
            wishes.append(Move(peer, source if rng.random() < 0.9 else rng.randint(0, 4), rng.randint(-1, stages)))
        planned = plan_moves(wishes, replicas, minimum)
        assert planned == twin(wishes, replicas, minimum), (wishes, replicas, minimum)
        assert holds(planned, replicas, minimum)
        most = max(most, len(planned))
    assert most >= 2, "several at once were granted somewhere"
