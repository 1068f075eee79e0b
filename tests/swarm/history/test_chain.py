"""The chain of records: what is known of each version, what replaces it, what is forgotten."""

import dataclasses

import pytest

from swarmd.swarm.history import chain as module
from swarmd.swarm.history.chain import Chain
from swarmd.swarm.history.record import Record, build_return
from tests.swarm.records import record, report

GENESIS = "genesis"


def records(count: int, *, parent: str = GENESIS, first: int = 1, tokens: int = 64) -> list[Record]:
    """Records that follow one another. `tokens`: other ones make another history."""
    made: list[Record] = []
    for step in range(first, first + count):
        parent = made[-1].hash if made else parent
        made.append(record(report(0), report(1, tokens=tokens), step=step, parent=parent, total_tokens=64 * (step - 1)))
    return made


def chain_of(made: list[Record]) -> Chain:
    chain = Chain(GENESIS)
    for it in made:
        chain.append(it)
    return chain


def returning(to: Record, after: Record) -> Record:
    """The return to a version, decided as what follows `after`."""
    lives = {"m0": 1, "m1": 2}
    return build_return(to, (("m0",), ("m1",)), lives, after=after.hash, after_version=after.step, conductor="c")


def test_untrained_there_is_no_record_and_the_run_names_the_version() -> None:
    chain = Chain(GENESIS)
    assert (chain.version, chain.newest, chain.newest_hash, len(chain)) == (0, None, GENESIS, 0)
    assert (chain.hash_at(0), chain.hash_at(1), chain.at(0)) == (GENESIS, "", None)
    assert (chain.members(), chain.members(0), chain.total_tokens) == ((), (), 0)


def test_each_record_goes_one_version_further() -> None:
    made = records(3)
    chain = chain_of(made)
    assert (chain.version, chain.newest, chain.newest_hash) == (3, made[2], made[2].hash)
    assert [chain.hash_at(version) for version in range(5)] == [GENESIS, *(it.hash for it in made), ""]
    assert [chain.at(version) for version in range(1, 4)] == made
    assert (chain.members(), chain.members(1)) == (("m0", "n0", "m1", "n1"), ("m1", "n1"))
    assert chain.total_tokens == 3 * 64


@pytest.mark.parametrize("wrong", [{"step": 5}, {"step": 3}, {"parent": "another"}], ids=str)
def test_what_does_not_follow_is_not_appended(wrong: dict[str, object]) -> None:
    made = records(4)
    with pytest.raises(AssertionError):
        chain_of(made[:3]).append(dataclasses.replace(made[3], **wrong))  # type: ignore[arg-type]


def test_another_record_of_a_known_step_contradicts_the_chain() -> None:
    made = records(3)
    chain = chain_of(made)
    assert not any(chain.contradicts(it) for it in made)
    assert chain.contradicts(records(2, tokens=65)[1])
    assert not chain.contradicts(records(1, first=4, tokens=65)[0]), "nothing is known of that step"


def test_a_return_is_new_until_it_led_to_its_version() -> None:
    made = records(3)
    chain = chain_of(made)
    back = returning(made[1], made[2])
    assert chain.is_new_return(back)
    assert not chain.is_new_return(made[1]), "it is none"
    chain.move(back, back.step - 1)
    assert not chain.is_new_return(back)
    assert chain.is_new_return(returning(made[1], back)), "another one to the same version"


def test_a_return_takes_the_place_of_the_record_of_its_version() -> None:
    made = records(3)
    chain = chain_of(made)
    back = returning(made[1], made[2])
    chain.move(back, back.step - 1)
    assert (chain.version, chain.newest) == (2, back)
    assert [chain.at(version) for version in (1, 2, 3)] == [made[0], back, None]
    [after] = records(1, first=3, parent=back.hash)
    chain.append(after)
    assert chain.newest == after


def test_of_a_history_that_is_given_up_what_came_before_the_fork_stays() -> None:
    made, others = records(4), records(6, tokens=65)
    chain = chain_of(made)
    chain.move(others[5], 2)
    assert (chain.version, chain.newest) == (6, others[5])
    assert [chain.at(version) for version in range(1, 6)] == [*made[:2], None, None, None]


def test_an_older_version_voids_what_came_after() -> None:
    made = records(4)
    chain = chain_of(made)
    chain.move(made[1], 2)
    assert (chain.version, len(chain), chain.hash_at(3)) == (2, 2, "")
    chain = chain_of(made)
    chain.move(made[1], 3)
    assert (chain.version, chain.hash_at(3)) == (2, ""), "though it is in common"
    chain.move(None, 0)
    assert (chain.version, chain.newest, chain.newest_hash, len(chain)) == (0, None, GENESIS, 0)


def test_after_a_leap_what_lies_between_is_not_known() -> None:
    made = records(6)
    chain = chain_of(made[:2])
    chain.move(made[5], 6)
    assert [chain.at(version) for version in range(1, 7)] == [*made[:2], None, None, None, made[5]]


def test_earlier_records_are_learned_as_far_as_they_are_a_chain() -> None:
    made = records(6)
    chain = Chain(GENESIS)
    chain.move(made[5], 0)
    chain.learn({2: made[1], 3: records(3, tokens=65)[2], 4: made[3], 5: made[4]})
    assert [chain.at(version) for version in range(1, 7)] == [None, None, None, *made[3:]]
    chain.learn({step: made[step - 1] for step in (1, 2, 3)})
    assert [chain.at(version) for version in range(1, 7)] == made
    chain.learn({})
    assert len(chain) == 6


def test_only_so_many_are_kept_and_the_oldest_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RECORDS_KEPT", 3)
    made = records(5)
    chain = chain_of(made)
    assert [chain.at(version) for version in range(1, 6)] == [None, None, *made[2:]]
    late = Chain(GENESIS)
    late.move(made[4], 0)
    late.learn({it.step: it for it in made[:4]})
    assert [late.at(version) for version in range(1, 6)] == [None, None, *made[2:]], "those of the newest steps"
