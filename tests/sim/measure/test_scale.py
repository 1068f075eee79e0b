"""Large swarms: they commit exact steps, and what each peer sends doesn't grow with them."""

import logging
from collections.abc import Callable

import pytest

from swarmd.sim.__main__ import run_command_line
from swarmd.sim.measure.figures import Scale, measure_scale, open_world, plan_run
from swarmd.sim.world.clock import run_virtual
from swarmd.sim.world.world import ENTRIES
from swarmd.swarm.membership.table import SMALL_SWARM, heartbeat_interval, summary_interval

GOSSIP_LIMIT = 16.0  # copies that a peer sends per second: five of two heartbeats, and of half a summary
GOSSIP_BYTES_LIMIT = 16_000.0
MESSAGES_LIMIT = 24.0  # all messages, per peer and second, where a microbatch takes a second


@pytest.mark.parametrize(("peers", "stages"), [(32, 2), (96, 8)])
def test_traffic_per_peer_does_not_grow_with_the_swarm(peers: int, stages: int) -> None:
    it: Scale = measure_scale(peers, stages, 40.0, seconds=1.0, microbatches_per_peer=1)
    assert it.steps >= 1
    assert it.microbatches == it.steps * peers // stages
    assert (it.lost, it.duplicated) == (0, 0)
    assert it.gossip < GOSSIP_LIMIT
    assert it.gossip_bytes < GOSSIP_BYTES_LIMIT
    assert it.messages < MESSAGES_LIMIT


def test_in_a_large_swarm_at_rest_nobody_is_taken_for_lost_and_no_hop_is_sent_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        it = measure_scale(64, 8, 60.0, seconds=10.0, microbatches_per_peer=4)
    assert it.by_kind.get("Locate", 0.0) == 0.0
    assert not [line for line in caplog.messages if "comes back" in line or "is dropped" in line or "is lost" in line]


def test_who_joins_greets_those_near_and_announces_itself_only_to_those_it_has_met() -> None:
    async def main() -> tuple[int, int]:
        world = open_world(plan_run(4, 8, 1))
        for number in range(32):
            await world.start(f"peer{number:02d}", stage=number % 4)
        await world.sleep(1)
        frames = world.network.count().frames
        await world.stop()
        return frames["Announce"], frames["Hello"] // 2

    announced, greeted = run_virtual(main())
    assert greeted >= 32 * 31 // 2
    assert announced <= greeted + 32 * ENTRIES, "once to each, and again when it has its stage to those it met first"


@pytest.mark.parametrize("interval", [heartbeat_interval, lambda peers: summary_interval(peers, peers // 8)])
def test_nobody_hears_more_gossip_in_a_larger_swarm(interval: Callable[[int], float]) -> None:
    rates = [peers / interval(peers) for peers in range(1, 5000)]
    assert max(rates) <= 4.0
    assert rates[-1] <= max(rates[:SMALL_SWARM])


def test_figures_are_printed_and_called_simulated(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["scale", "--peers", "4", "--stages", "2", "--minutes", "1", "--json"]) == 0
    assert '"simulated": true' in capsys.readouterr().out
    assert run_command_line(["detect", "--stages", "2"]) == 0
    assert "simulated" in capsys.readouterr().out
    assert run_command_line(["scale", "--peers", "1", "--stages", "2"]) == 2
    assert "--peers 2" in capsys.readouterr().err
