"""Forged records pass the first looks of a peer: they are of the run and hold together."""

import random

from swarmd.sim.faults.drawn_messages import Heard
from swarmd.sim.faults.forged_records import Forger
from swarmd.sim.faults.scenario import Scenario
from swarmd.swarm.history.record import Record, build_record, genesis_hash
from swarmd.swarm.history.record_codec import UNREADABLE, record_from_raw
from swarmd.swarm.wire.messages.commit import Commit
from swarmd.swarm.wire.messages.round import StageReport
from swarmd.swarm.wire.own_card import first_card

RUN = Scenario(replicas=(2, 1)).run_config()
DRAWS = 200


def true_record() -> Record:
    reports = [
        StageReport(stage, f"digest {stage}", 4.0, 100, 7.0, 8, 0, 0, 0, True, ("head1",), ("head1",))
        for stage in range(2)
    ]
    record = build_record(
        RUN, genesis_hash(RUN), 1, reports, conductor="head1", seconds=1.0, validation_loss=None, total_tokens=0
    )
    return record_from_raw(RUN, record.raw)


def forged(heard: Heard) -> list[Record]:
    """Those of many draws that hold together."""
    forger, taken = Forger(RUN, heard, "me"), []
    for number in range(DRAWS):
        raw = forger.record(random.Random(number))
        try:
            taken.append(record_from_raw(RUN, raw))
        except UNREADABLE:
            continue
    return taken


def test_before_the_first_step_a_first_record_is_forged() -> None:
    records = forged(Heard())
    assert len(records) > DRAWS / 3
    assert {(it.step, it.parent) for it in records} >= {(1, genesis_hash(RUN))}


def test_a_forged_record_follows_the_newest_that_was_heard_of() -> None:
    heard, record = Heard(), true_record()
    heard.take(Commit(record.raw))
    card = first_card("head1", 3, (), "sim", ())
    heard.take(type(card)(**{**card.__dict__, "version": 1, "record_hash": record.hash, "state": "serving"}))
    records = forged(heard)
    assert len(records) > DRAWS / 3
    assert any(it.follows(2, record.hash) and not it.after for it in records)
    returns = [it for it in records if it.after]
    assert returns and all((it.after, it.after_version) == (record.hash, 1) for it in returns)
    assert any(it.ends for it in returns) and not all(it.ends for it in returns)
    assert any(it.step == 1 and not it.after and it.hash != record.hash for it in records), "a true one is altered"
