"""Records from strangers: whatever is no record of the run is its sender's fault."""

import json
import math
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.errors import PeerFault
from swarmd.swarm.history.ledger import ledger_line
from swarmd.swarm.history.record import Record, record_to_plain
from swarmd.swarm.history.record_codec import record_from_raw
from swarmd.swarm.history.record_format import LATER, UNHASHED
from swarmd.swarm.wire.messages.fields import (
    BALLOT_LIMIT,
    COUNT_LIMIT,
    HASH_CHARACTERS,
    PEER_CHARACTERS,
    PEERS_LIMIT,
)
from tests.swarm.records import RUN, record, skipped


def raw(plain: Mapping[str, Any]) -> bytes:
    """As a stranger may write it, whose JSON has infinities, too."""
    lines = ({name: it for name, it in plain.items() if (name in UNHASHED) is beside} for beside in (False, True))
    return "\n".join(map(json.dumps, lines)).encode()


def read(plain: Mapping[str, Any]) -> Record:
    return record_from_raw(RUN, raw(plain))


def plain(**changes: Any) -> dict[str, Any]:
    return {**record_to_plain(record()), **changes}


def stage_plain(**changes: Any) -> dict[str, Any]:
    stages = record_to_plain(record())["stages"]
    return plain(stages=[{**stages[0], **changes}, stages[1]])


DAMAGED: dict[str, dict[str, Any]] = {
    "empty": {},
    "a field too many": plain(extra=1),
    "a field too few": {key: value for key, value in plain().items() if key != "parent"},
    "no stages": plain(stages=[]),
    "stages that are no list": plain(stages=7),
    "stages that are text": plain(stages="ab"),
    "a stage that is no map": plain(stages=[1, 2]),
    "stages out of order": plain(stages=plain()["stages"][::-1]),
    "a stage too many": plain(stages=[*plain()["stages"], plain()["stages"][1]]),
    "step 0": plain(step=0),
    "a step beyond the run": plain(step=11),
    "a step that is text": plain(step="3"),
    "a step that is nothing": plain(step=None),
    "another learning rate": plain(learning_rate=1.0),
    "a loss that is no number": plain(loss=math.nan),
    "an endless norm": plain(grad_norm=math.inf),
    "a negative time": plain(seconds=-1.0),
    "a loss that is text": plain(loss="2"),
    "a loss that is nothing": plain(loss=None),
    "a factor that doesn't follow": plain(clip_factor=1.0),
    "a norm that doesn't follow": plain(grad_norm=1.0, clip_factor=1.0),
    "a parent that is a number": plain(parent=5),
    "a digest that is a number": stage_plain(digest=5),
    "members that are no list": stage_plain(members=5),
    "members that are numbers": stage_plain(members=[5]),
    "holders that are numbers": stage_plain(holders=[5]),
    "a stage's field too few": plain(stages=[{"stage": 0}, {"stage": 1}]),
    "a stage's field too many": stage_plain(extra=1),
    "a stage's norm that is no number": stage_plain(squared_norm=math.nan),
    "a stage's norm that is text": stage_plain(squared_norm="4"),
    "norms too great to add": plain(stages=[{**entry, "squared_norm": 1.7e308} for entry in plain()["stages"]]),
    "a number beyond all": plain(seconds=10**400),
    "a count that is text": stage_plain(lost="many"),
    "a count below zero": stage_plain(duplicated=-1),
    "tokens that are nothing": plain(tokens=None),
    "skipped that is text": plain(skipped="no"),
    "a conductor that is a list": plain(conductor=["c"]),
    "a validation loss that is text": plain(validation_loss="low"),
    "a validation loss that is no number": plain(validation_loss=math.nan),
    "a ballot that no message may have": plain(ballot=[BALLOT_LIMIT + 1, "c"]),
    "a ballot of three": plain(ballot=[1, "c", "d"]),
    "a name beyond all": plain(conductor="c" * (PEER_CHARACTERS + 1)),
    "a member that can't be shown": stage_plain(members=["a\x1b[2J"]),
    "a member that is half a letter": stage_plain(members=["\ud800"]),
    "a holder beyond all": stage_plain(holders=["h" * (PEER_CHARACTERS + 1)]),
    "a stage of too many members": stage_plain(members=["m"] * (PEERS_LIMIT + 1)),
    "a parent that no question may name": plain(parent="p" * (HASH_CHARACTERS + 1)),
    "a digest that no question may name": stage_plain(digest="d" * (HASH_CHARACTERS + 1)),
    "a return after what can't be shown": plain(after="a\nb", after_version=3, lives=[1, 1, 1, 1]),
    "a count beyond all": plain(total_tokens=COUNT_LIMIT + 1),
    "a mover that can't be shown": plain(moves=[{"peer": "\x00", "source": 0, "target": 1}]),
}

RETURN: dict[str, Any] = {"after": "a" * 32, "after_version": 9, "lives": list(range(len(record().members())))}
LONG: dict[str, dict[str, Any]] = {
    "tokens without end": plain(total_tokens=1 << 63),
    "a count without end": stage_plain(lost=1 << 63),
    "a parent without end": plain(parent="p" * 65),
    "a parent that can't be shown": plain(parent="\x1b"),
    "a digest without end": stage_plain(digest="d" * 65),
    "a member without end": stage_plain(members=["m" * 65]),
    "members without end": stage_plain(members=["m"] * 5000),
    "a ballot without end": plain(ballot=[1 << 63, "c"]),
    "a ballot of somebody without end": plain(ballot=[1, "c" * 65]),
    "a return after a step beyond the run": plain(**{**RETURN, "after_version": 11}),
    "a return of lives without end": plain(**{**RETURN, "lives": [1 << 63] * len(RETURN["lives"])}),
    "a return after a record without end": plain(**{**RETURN, "after": "a" * 65}),
}
"""Records whose fields go on in other messages, which have bounds."""


@pytest.mark.parametrize("long", LONG.values(), ids=LONG.keys())
def test_what_is_said_of_a_record_keeps_to_the_bounds_of_messages(long: dict[str, Any]) -> None:
    assert read(plain(**RETURN)).place == (10, "a" * 32)
    with pytest.raises(PeerFault, match="not a commit record"):
        read(long)


@pytest.mark.parametrize("damaged", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_record_is_its_senders_fault(damaged: dict[str, Any]) -> None:
    with pytest.raises(PeerFault, match="not a commit record"):
        read(damaged)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(sorted(record_to_plain(record()))), JSON)
def test_whatever_is_in_a_field_it_is_a_record_or_a_fault(name: str, value: Any) -> None:
    try:
        it = read(plain(**{name: value}))
    except PeerFault:
        return
    assert it.hash
    assert ledger_line(it, 0, "d")


@pytest.mark.parametrize(
    "changes",
    [
        {"grad_norm": 1.0},
        {"clip_factor": 1.0},
        {"loss": 2.0},
        {"skips": -1},
        {"skips": True},
        {"why": "two\nlines"},
        {"why": "\x1b[31m"},
        {"why": "x" * 401},
        {"why": None},
        {"broke_at": 2},
        {"ends": True},
        {"ends": 1},
    ],
    ids=str,
)
def test_a_skipped_record_with_numbers_that_do_not_go_together_is_none(changes: dict[str, Any]) -> None:
    plain = record_to_plain(skipped())
    read(plain)
    with pytest.raises(PeerFault):
        read({**plain, **changes})
    plain = record_to_plain(skipped())
    plain["stages"][0]["squared_norm"] = 4.0
    with pytest.raises(PeerFault):
        read(plain)


def test_a_record_that_is_not_skipped_counts_no_skips() -> None:
    with pytest.raises(PeerFault):
        read({**record_to_plain(record()), "skips": 1})


def test_a_record_of_the_first_release_that_was_skipped_is_taken() -> None:
    plain = record_to_plain(skipped())
    old = {name: it for name, it in plain.items() if name not in (*dict(LATER), "why")}
    it = read(old)
    assert (it.skipped, it.skips, it.why) == (True, 0, "")
