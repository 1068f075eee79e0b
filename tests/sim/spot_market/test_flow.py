"""Swarms as flows: what they count, and that rebalancing brings what it should. And the traces they are played on."""

import itertools
import math

import pytest

from swarmd.sim.spot_market.flow import Rule, Setting, Swarm
from swarmd.sim.spot_market.meter import Flow, Meter
from swarmd.sim.spot_market.preemptions import Change, generated, recorded


def play(trace: list[Change], rule: Rule, period_s: float = 60.0, *, hours: float = 2.0, stages: int = 4) -> Flow:
    return Swarm(Setting(rule, period_s, stages=stages), trace, 0, hours).run()


def begin(peers: int) -> list[Change]:
    return [Change(0.0, number, comes=True) for number in range(peers)]


def test_whoever_is_there_from_the_start_is_where_it_should_be() -> None:
    flow = play(begin(12), "balance")
    assert flow.overall == pytest.approx(100.0)
    assert flow.moves == 0


def test_a_stage_that_loses_two_is_helped_and_the_price_is_a_download_a_step_and_a_switch() -> None:
    """Of 4 stages of 4, stage 1 loses two after an hour: 3 of 3 could be served at once."""
    trace = [*begin(16), Change(3600.0, 1, comes=False), Change(3600.0, 5, comes=False)]
    flow = play(trace, "balance")
    assert flow.moves == 1
    lost = (1 - flow.last_hour / 100) * 3600 * 3  # microbatches; one third of the rate for so many seconds
    assert 15 < lost < 3 + 10 + 15 + 60 + 10
    assert play(trace, "none").last_hour == pytest.approx(100 * 2 / 3, abs=0.5)


def test_who_leaves_in_the_middle_of_a_long_step_is_there_sooner() -> None:
    """Of a step of ten minutes; the price is what it takes to hand its sum over."""
    trace = [*begin(16), Change(3600.0, 1, comes=False), Change(3600.0, 5, comes=False)]

    def lost(move_wait_s: float) -> float:
        setting = Setting("balance", 60.0, stages=4, step_s=600.0, move_wait_s=move_wait_s)
        return (1 - Swarm(setting, trace, 0, 2.0).run().last_hour / 100) * 3600 * 3

    at_once = 3 + 1 + 3 + 15.2 + 10.1 + 10  # to notice, hear, look (or a little sooner), pull, hand over, switch
    assert at_once - 3 < lost(15.0) < at_once + 0.5
    assert lost(math.inf) == pytest.approx(600.0, abs=15.0), "it waits for the record"


def test_who_has_notice_has_its_place_taken_before_it_goes() -> None:
    """17 peers, of which one of a stage of four goes: four can be everywhere all the time."""
    trace = [*begin(17), Change(3600.0, 1, comes=False)]

    def lost(notice_s: float) -> float:
        setting = Setting("balance", 60.0, stages=4, notice_s=notice_s)
        return (1 - Swarm(setting, trace, 0, 2.0).run().overall / 100) * 7200 * 4

    assert lost(0.0) > 30
    assert 10 < lost(75.0) < lost(0.0), "the other is still on its way when it drains, a minute before it goes"
    assert lost(120.0) == pytest.approx(0.0, abs=0.1)


@pytest.mark.slow
def test_of_all_rules_ours_loses_least_and_moves_less_than_the_published_one() -> None:
    trace = generated(0, hours=32.0)
    late = [Change(it.at_s, it.instance, it.comes) for it in trace if it.at_s < 31 * 3600]
    flows = {
        rule: Swarm(Setting(rule, 60.0), late, 0, 31.0).run() for rule in ("random", "none", "published", "balance")
    }
    overall = [flows[rule].overall for rule in ("random", "none", "published", "balance")]
    assert overall == sorted(overall)
    assert flows["balance"].overall > 99.0
    assert flows["balance"].moves < flows["published"].moves / 5


def test_two_runs_are_the_same() -> None:
    trace = recorded(3, hours=2.0, groups=4)
    assert play(trace, "balance") == play(trace, "balance")


def test_a_meter_adds_up() -> None:
    meter = Meter(1.0)
    meter.add(0.0, 1800.0, 1.0, 2.0, 4)
    meter.add(1800.0, 3600.0, 2.0, 2.0, 4)
    flow = meter.flow(moves=3)
    assert (flow.overall, flow.first_hour, flow.peers, flow.moves_per_hour) == (75.0, 75.0, 4.0, 3.0)
    assert (flow.curve[0], flow.curve[-1], len(flow.curve)) == (50.0, 100.0, 10)


@pytest.mark.parametrize("draw", [recorded, generated])
def test_in_a_trace_everyone_comes_once_and_goes_once_at_most(draw: object) -> None:
    trace = recorded(5) if draw is recorded else generated(5)
    assert all(one.at_s <= other.at_s for one, other in itertools.pairwise(trace))
    alive: set[int] = set()
    seen: set[int] = set()
    for it in trace:
        if it.comes:
            assert it.instance not in seen
            seen.add(it.instance)
            alive.add(it.instance)
        else:
            alive.remove(it.instance)
    assert trace[0].at_s >= 0 and trace[-1].at_s < 33 * 3600
    assert len([it for it in trace if it.at_s == 0 and it.comes]) > 300


def test_the_recorded_log_loses_what_is_said_of_it() -> None:
    trace = recorded(1, hours=32.0)
    lost = sum(not it.comes for it in trace)
    assert 0.05 < lost / 32 / 390 < 0.25
