"""The ledger: what a line has, what is counted, and what is taken back."""

import dataclasses
from collections.abc import Container
from typing import Any, cast

import pytest

from swarmd.swarm.history import ledger as module
from swarmd.swarm.history.ledger import Ledger, ledger_line
from swarmd.swarm.history.record import Record, build_return
from tests.swarm.records import record, report, skipped


class Disk:
    """A store's ledger: its lines, with those that are voided taken out."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def append_ledger(self, line: dict[str, Any]) -> None:
        self.lines.append(line)

    def void_ledger(self, version: int, records: Container[str] | None = None) -> None:
        self.lines = [line for line in self.lines if line["step"] <= version]


def step(number: int) -> Record:
    """A record with as many losses as its number says."""
    return record(report(0, lost=number, resent=1), report(1), step=number)


def test_a_ledger_line_has_what_design_section_8_promises() -> None:
    promised = (
        "step",
        "record",
        "parent",
        "stage",
        "microbatches",
        "tokens",
        "loss",
        "grad_norm",
        "lr",
        "members",
        "resent",
        "subtracted",
        "lost",
        "duplicated",
        "grad_digest",
        "digest",
        "seconds",
    )
    it = record(report(0, lost=1, microbatches=7), report(1))
    line = ledger_line(it, 0, "abc")
    assert set(promised) <= set(line)
    assert (line["record"], line["parent"], line["grad_digest"], line["digest"]) == (it.hash, "parent", "d0", "abc")
    assert (line["lost"], line["resent"], line["microbatches"], line["members"]) == (1, 0, 7, ["m0", "n0"])
    assert (line["loss"], line["tokens"]) == (2.0, 64), "the swarm's, on every stage"


def test_the_line_of_a_skipped_step_has_a_reason_and_no_loss() -> None:
    line = ledger_line(skipped(), 0, "d")
    assert (line["skipped"], line["loss"], line["why"]) == (True, None, skipped().why)
    assert "why" not in ledger_line(record(), 0, "d")


def test_the_line_of_a_return_with_which_a_prolonged_run_begins_names_what_it_continues() -> None:
    it = build_return(
        record(),
        (("m0",), ("m1",)),
        {"m0": 1, "m1": 2},
        after="founder",
        after_version=3,
        conductor="c",
        continues="old",
    )
    assert ledger_line(it, 0, "d")["continues"] == "old"
    assert "continues" not in ledger_line(dataclasses.replace(it, continues=""), 0, "d")


def test_counts_are_added_up_and_taken_back_with_their_lines() -> None:
    disk = Disk()
    ledger = Ledger(cast("Any", disk))
    for number in (1, 2, 3):
        ledger.append(step(number), 0, "d")
    assert ledger.totals == {"resent": 3, "subtracted": 0, "lost": 6, "duplicated": 0}
    ledger.void(1)
    assert ledger.totals == {"resent": 1, "subtracted": 0, "lost": 1, "duplicated": 0}
    assert [line["step"] for line in disk.lines] == [1]
    ledger.append(step(2), 0, "d")
    assert (ledger.totals["lost"], len(disk.lines)) == (3, 2)


def test_only_the_newest_lines_can_be_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LINES_KEPT", 2)
    ledger = Ledger(cast("Any", Disk()))
    for number in (1, 2, 3):
        ledger.append(step(number), 0, "d")
    ledger.void(0)
    assert ledger.totals["lost"] == 1, "the first line's count stays"
