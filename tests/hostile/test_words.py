"""Words of a liar are messages of the schema: with honest values each of them is read, so none is refused for its form.

What is hostile about an attack is what it says, or who says it.
"""

import dataclasses

import msgpack
import pytest

from swarmd.config import fingerprint, to_plain
from swarmd.swarm.wire.framing import from_frame, to_frame
from swarmd.swarm.wire.own_card import first_card
from swarmd.values import Encoded, Frame
from tests.hostile import words
from tests.hostile.victims import RUN

CARD: words.Card = to_frame(first_card("me", 1, ("/ip4/127.0.0.1/tcp/1",), "cpu", ("fp32",))).body
STAND = words.Stand(4, "ab" * 16)
TENSOR = Encoded("fp32", (2,), (bytes(8),))
ALL = ((0, 4),)

WORDS: dict[str, Frame] = {
    "hello": words.hello(fingerprint(RUN), CARD),
    "ask_settings": words.ask_settings(),
    "settings": words.settings(to_plain(RUN), fingerprint(RUN)),
    "announce": words.announce(words.changed(CARD, stage=1, state="serving")),
    "summary": words.summary(0, [CARD], 1),
    "place": words.place(1, [CARD], "me", 1),
    "ack": words.ack(),
    "ask_record": words.ask_record(4),
    "commit": words.commit(b"record", ("me",)),
    "vote": words.vote(),
    "prepare": words.prepare(STAND, 1, "me"),
    "accept": words.accept(STAND, 1, "me", b"record"),
    "promise": words.promise(1, "me"),
    "gradient_part": words.gradient_part(1, TENSOR),
    "took_over": words.took_over(STAND, 1, "me", 1),
    "ask_lease": words.ask_lease(STAND, 1, ALL, ALL),
    "revoke": words.revoke(5, ALL),
    "ask_stay": words.ask_stay(STAND, 1),
    "close": words.close(STAND, 1, "me"),
    "freeze": words.freeze(STAND, 1, "me"),
    "ask_holdings": words.ask_holdings(STAND, 1, "me", spared=ALL, blame="gradient"),
    "subtract": words.subtract(STAND, 1, "me", ALL),
    "resend": words.resend(STAND, 1, "me", 1, ALL, ("me",)),
    "plan": words.plan(STAND, 1, "me", 8, ("me",)),
    "averaged": words.averaged(TENSOR),
    "hand_over": words.hand_over(STAND, 1, 0, TENSOR, ALL),
    "hop": words.hop(STAND, 0, bytes(8), TENSOR),
    "cancel": words.cancel([(5, 0)]),
    "beat": words.beat([(5, 0)], 1, 1.0, 1.0),
    "not_finite": words.not_finite(),
    "busy": words.busy(),
    "located": words.located(here=True),
    "snapshot": words.snapshot(5, b"record", 8, 8, ["ab"]),
    "chunk": words.chunk(b"x"),
    "ask_checkpoints": words.ask_checkpoints(),
    "ask_snapshot": words.ask_snapshot(1),
}


@pytest.mark.parametrize("name", WORDS)
def test_every_word_is_of_the_schema(name: str) -> None:
    sent = dataclasses.replace(WORDS[name], body=msgpack.unpackb(msgpack.packb(WORDS[name].body)))
    assert type(from_frame(sent)).__name__ == sent.kind
    assert not {*sent.body} - {*to_frame(from_frame(sent)).body}, "a field that nobody reads"


def test_no_word_is_left_out() -> None:
    made = {name for name, it in vars(words).items() if getattr(it, "__annotations__", {}).get("return") is Frame}
    assert made == {*WORDS}


def test_what_is_read_from_answers_is_there() -> None:
    assert words.stand_of(words.card_in(WORDS["hello"])) == words.Stand(0, "")
    assert words.settings_in(WORDS["settings"]) == (to_plain(RUN), fingerprint(RUN))
    assert words.record_in(WORDS["commit"]) == b"record"
    assert words.hop_in(WORDS["hop"]) == (5, 0)
    assert words.tokens_in(WORDS["hop"]) == bytes(8)
