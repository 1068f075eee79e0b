"""Refusals: their kind survives the wire, which carries a code beside the sentence."""

import pytest

from swarmd.errors import (
    CODES,
    HopGivenUp,
    Mismatch,
    NotAllowed,
    OutOfRange,
    Outvoted,
    Overruled,
    Refused,
    UnknownFormat,
    UnknownKind,
    refusal_of,
)

SENT = [
    HopGivenUp(),
    Overruled("another leads"),
    Outvoted(4, 12),
    OutOfRange("too many"),
    UnknownKind("what?"),
    UnknownFormat("a record of format 9"),
    NotAllowed("who are you?"),
    Refused("it is over"),
]


@pytest.mark.parametrize("sent", SENT, ids=lambda it: type(it).__name__)
def test_a_refusal_comes_back_as_what_it_was(sent: Refused) -> None:
    told = refusal_of(sent.code, str(sent), sent.numbers)
    assert (type(told), str(told), told.numbers) == (type(sent), str(sent), sent.numbers)


@pytest.mark.parametrize("code", ["", "refused", "a code of a later release", "HopGivenUp"])
def test_a_refusal_with_another_code_is_a_plain_one_whatever_its_words(code: str) -> None:
    told = refusal_of(code, str(HopGivenUp()))
    assert (type(told), str(told)) == (Refused, str(HopGivenUp()))


def test_every_code_is_of_one_kind_and_a_mismatch_has_none() -> None:
    """Another peer's word that the runs differ is no reason to give it up for good."""
    assert {kind.code for kind in CODES.values()} == set(CODES) == {it.code for it in SENT if it.code}
    assert Mismatch.code == ""


def test_the_numbers_of_ballots_come_along() -> None:
    refusal = refusal_of("outvoted", "whatever it says", (4, 12))
    assert isinstance(refusal, Outvoted)
    assert (refusal.asked, refusal.heard) == (4, 12)


@pytest.mark.parametrize("numbers", [(), (4,), (4, 12, 13)])
def test_without_both_numbers_another_leads_all_the_same(numbers: tuple[int, ...]) -> None:
    assert type(refusal_of("outvoted", "another leads", numbers)) is Overruled
