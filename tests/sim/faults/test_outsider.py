"""An outsider in a small swarm: what it says is counted, it follows from the seed, and nothing of it is left."""

import dataclasses
from collections import Counter

import pytest

from swarmd.sim.campaign.play import Outcome, Play, play
from swarmd.sim.campaign.seeds import Summary, examine
from swarmd.sim.faults.connections import Partition
from swarmd.sim.faults.draw import draw_scenario
from swarmd.sim.faults.draw_hostile import FIRST, HOSTILE_SECONDS, MOMENTS, draw_hostile
from swarmd.sim.faults.lies import LyingDonor
from swarmd.sim.faults.outsider import ELSEWHERE, EVERY_WORD, Outsider
from swarmd.sim.faults.scenario import Scenario
from swarmd.swarm.membership.table import Membership
from swarmd.swarm.wire.framing import KINDS
from swarmd.swarm.wire.messages.presence import Card

CALM = Scenario(replicas=(2, 1), microbatches=4, steps=6, speeds=(0.3,))
OUTSIDER = Outsider(0.1, "outsider", seconds=60.0, stage=-1, state="joining", rate=40.0)
HARMLESS = ("AskRecord", "AskSettings", "AskGradient", "AskChunk", "Locate")

PARTS = {
    "AveragedPart",
    "Ballot",
    "Blame",
    "CheckpointName",
    "HopBeat",
    "OpenPart",
    "Part",
    "SayHello",
    "Standing",
}
"""Parts of messages, and the one word that an outsider has no use for."""


def with_words(*words: str) -> Outcome:
    return play(dataclasses.replace(CALM, faults=(dataclasses.replace(OUTSIDER, words=words),)), trace=True)


def test_one_that_only_greets_and_listens_disturbs_nobody() -> None:
    outcome = with_words()
    assert outcome.passed, outcome.violations
    assert (outcome.version, outcome.struck, outcome.words) == (CALM.steps, {"outsider": 1}, {})


def test_what_becomes_of_its_questions_is_counted_by_kind() -> None:
    outcome = with_words(*HARMLESS)
    assert outcome.passed, outcome.violations
    assert set(outcome.words) == set(HARMLESS)
    assert outcome.words["AskRecord"]["answered"] > 0
    assert outcome.words["AskRecord"]["refused"] > 0
    assert sum(outcome.words["AskSettings"].values()) == outcome.words["AskSettings"]["answered"]


def test_the_same_outsider_says_the_same() -> None:
    first, again = with_words(*HARMLESS), with_words(*HARMLESS)
    assert (first.trace, first.words) == (again.trace, again.words)


def test_hostile_seeds_are_those_seeds_with_outsiders() -> None:
    for seed in range(40):
        scenario = draw_hostile(seed)
        outsiders = sum(isinstance(fault, Outsider) for fault in scenario.faults)
        assert scenario == draw_hostile(seed)
        assert 1 <= outsiders <= 2
        assert len(scenario.faults) - outsiders in (0, 1, 2, 3, len(draw_scenario(seed).faults))
        assert scenario.run_seconds() > 0.95 * HOSTILE_SECONDS[0]


def test_outsiders_are_there_when_something_happens() -> None:
    """Several of two hundred seeds have one before the first record, in a partition, when each kind of fault strikes
    that changes what peers believe of each other.
    """
    there = Counter[str]()
    for scenario in map(draw_hostile, range(200)):
        for it in (fault for fault in scenario.faults if isinstance(fault, Outsider)):
            there["beside a liar"] += any(isinstance(fault, LyingDonor) for fault in scenario.faults)
            during = {fault for fault in scenario.faults if it.at_s <= fault.at_s <= it.at_s + it.seconds}
            there.update({fault.kind for fault in during})
            there["before the first record"] += it.at_s < FIRST * scenario.step_seconds()
            there["in a group"] += any(it.peer in g for f in during if isinstance(f, Partition) for g in f.groups)
            there["posing" if it.poses else "not posing"] += 1
            assert it.poses or it.state in ELSEWHERE
    moments = (*(kind.kind for kind in MOMENTS), "beside a liar", "before the first record", "in a group")
    assert all(there[moment] >= 3 for moment in moments), there
    assert min(there["posing"], there["not posing"]) > 60


def test_one_that_does_not_pose_never_says_that_it_is_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    said: set[str] = set()

    def hear(membership: Membership, card: Card, now: float, *, told: bool = False) -> bool:
        said.update({card.state} if card.peer == "outsider" else ())
        return hear_before(membership, card, now, told=told)

    hear_before = Membership.hear
    monkeypatch.setattr(Membership, "hear", hear)
    for poses in (False, True):
        said.clear()
        it = dataclasses.replace(OUTSIDER, words=("Card", "Announce", "Hello"), rate=20.0, poses=poses)
        assert play(dataclasses.replace(CALM, faults=(it,))).words["Announce"]
        assert (said <= {*ELSEWHERE}) != poses, said


def test_a_third_of_its_questions_at_least_come_to_a_handler() -> None:
    summary = Summary()
    for seed in (2, 12, 15):
        summary.add(examine(seed, minimal=False, hostile=True))
    assert summary.tried() >= 0.3, summary.word_lines()


def test_it_is_gone_before_the_run_is_to_come_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bounds of a run are those of one without outsiders, from the moment that they are gone."""
    left: list[int] = []

    class Watched(Play):
        async def _liveness(self) -> bool:
            left.append(len(self.world.strangers))
            return await super()._liveness()

    outcome = play(
        dataclasses.replace(CALM, faults=(dataclasses.replace(OUTSIDER, words=(), seconds=1e6),)), course=Watched
    )
    assert outcome.passed, outcome.violations
    assert (outcome.struck, left) == ({"outsider": 1}, [0])


def test_it_draws_every_kind_of_message() -> None:
    assert set(EVERY_WORD) == set(KINDS) - PARTS
