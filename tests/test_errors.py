"""Refusals: their kind survives the wire, which carries a sentence only."""

import pytest

from swarmd.errors import HopGivenUp, Outvoted, Overruled, Refused, refusal_of

SENT = [
    (HopGivenUp(), "the hop was given up here"),
    (Overruled("abcd1234"), "another leader has the round: abcd1234"),
    (Overruled("its ballot: 1"), "another leader has the round: its ballot: 1"),
    (Outvoted(4, 12), "another leader has the round: its ballot is 4, and 12 was heard here"),
    (Overruled("its ballot is 4, and no other"), "another leader has the round: its ballot is 4, and no other"),
    (Refused("step 3 is over"), "step 3 is over"),
]


@pytest.mark.parametrize(("sent", "sentence"), SENT)
def test_a_refusal_comes_back_as_what_it_was(sent: Refused, sentence: str) -> None:
    """Its sentence, too: daemons of earlier releases tell the kind from it."""
    assert str(sent) == sentence
    assert type(refusal_of(sentence)) is type(sent)
    assert str(refusal_of(sentence)) == sentence


@pytest.mark.parametrize(
    "sentence", ["", "no: the hop was given up here", "the hop was given up here by others", "another leader has it"]
)
def test_a_sentence_that_only_sounds_alike_is_a_plain_refusal(sentence: str) -> None:
    assert type(refusal_of(sentence)) is Refused


def test_the_numbers_of_ballots_come_along() -> None:
    refusal = refusal_of(str(Outvoted(4, 12)))
    assert isinstance(refusal, Outvoted)
    assert (refusal.asked, refusal.heard) == (4, 12)


def test_a_number_that_no_ballot_has_is_not_read() -> None:
    sentence = f"another leader has the round: its ballot is 4, and {'9' * 5000} was heard here"
    assert type(refusal_of(sentence)) is Overruled
