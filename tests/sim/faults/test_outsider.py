"""An outsider in a small swarm: what it says is counted, it follows from the seed, and nothing of it is left."""

import dataclasses

from swarmd.sim.campaign.play import Outcome, play
from swarmd.sim.faults.draw import draw_hostile, draw_scenario
from swarmd.sim.faults.outsider import EVERY_WORD, Outsider
from swarmd.sim.faults.scenario import Scenario
from swarmd.swarm.wire.framing import KINDS

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
        assert len(scenario.faults) - outsiders in (0, len(draw_scenario(seed).faults))
        assert scenario.run_seconds() > 30


def test_it_draws_every_kind_of_message() -> None:
    assert set(EVERY_WORD) == set(KINDS) - PARTS
