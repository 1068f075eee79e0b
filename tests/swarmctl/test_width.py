"""Every table at every width: columns are left out and said to be, and no word is cut."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import RenderableType

from swarmctl import render
from swarmctl.plan import render_plan
from swarmctl.render import render_peers, render_status, render_work
from swarmd.demo.process import DaemonProcess
from swarmd.demo.view import peer_table, swarm_lines
from swarmd.sim.planner.forecast import Forecast, GroupInStage
from swarmd.sim.planner.plan import Plan, Variant
from swarmd.status import HopRow, PeerRow, Queues, Status, Wait
from tests.daemon.fakes import ADDRESS, STATUS
from tests.demo.stand_ins import RUN
from tests.widths import WIDTHS, check_width, drawn

STATES = ("serving", "draining", "joining", "paused", "finished", "waiting")

PEERS = [
    PeerRow(
        f"12D3KooWBLkzLw5Hc7ChAFjRQgsq9PdEz9S31jmUhT54fm3k{number:04d}",
        number % 32 if number % 9 else None,
        STATES[number % len(STATES)],
        12_345 + number,
        number,
        2 * number,
        1_000 + number,
        1_234.56 * number,
        ("cpu", "cuda:0", "NVIDIA_A100-SXM4-80GB")[number % 3],
        (ADDRESS,),
        0.1 * number,
        is_self=number == 7,
        suspect=number % 5 == 0,
        software="0.10.12.dev1+g0123456",
    )
    for number in range(200)
]
HOPS = [
    HopRow(123_456, 32_000 + at, ("waiting", "computing", "passed", "backward")[at % 4], PEERS[at].peer_id, "x", 1.5)
    for at in range(100)
]
FULL = replace(
    STATUS,
    run="a-run-of-many-words",
    model="96 layers of width 12288 in 32 stages, one block shared in each stage, 4096 sequences a step",
    stage=31,
    stages=32,
    step=123_456,
    steps=1_000_000,
    seconds_left=1e7,
    peers={str(stage): 100 + stage for stage in range(32)},
    unseen={str(stage): 90 + stage for stage in range(29)},
    addresses=(ADDRESS, ADDRESS.replace("ip4/127.0.0.1", "dns4/a-long-name.of-a-machine.example.org")),
    software="0.10.12.dev1+g0123456",
    torch="2.13.0+cu130",
    state_bytes=1_000_000_000,
    state_bytes_total=123_000_000_000,
    state_donors=1,
    moving_to=2,
    moved_because="stage 2 has the least power of all stages, and this peer is one of those that can be spared",
    doing="moving to stage 2: its state comes",
    waits=(Wait("a peer for stage 2", 61.0, "", "refused", f"start one with `swarmd start --bootstrap {ADDRESS}`"),),
    warnings=("can't save checkpoints: No space left on device",),
)
ROW = GroupInStage("NVIDIA-A100-80GB@10Gbps", 0, 1_000, 0.1, 1.0, 0.5, 0.555, 0.1, 1.0, 1e9, 1e9, 4e10, 0.999)
FORECAST = Forecast(123_456.0, 86_400.0, 600.0, "stage 0, downlink (100% in use)", (ROW,) * 32, "", 0.9)
TALE = "nothing is full: stage 30, compute is 32% in use, the rest is latency and uneven turns"
PLAN = Plan(
    "a-run-of-many-words",
    32_000,
    32,
    175_000_000_000,
    0.05,
    "bottleneck-2",
    "bf16",
    FORECAST,
    1e8,
    10**13,
    12_345.0,
    1e7,
    123.0,
    (Variant("bottleneck-2", 123_456.0, TALE, 10**7, exists=False),) * 5,
    tuple(Variant(f"{count}", 1e6, TALE, 10**7, exists=True) for count in (32_000, 64_000, 128_000)),
    ("simulated were 14 of the 32,000 peers and 726 of the 4,096 microbatches of a step",),
)


def daemons(path: Path) -> list[DaemonProcess]:
    made = [DaemonProcess(number, number % 3, path) for number in range(40)]
    for each in made[1:]:
        each.status = FULL
    return made


SHOWN: dict[str, Callable[[Path], RenderableType]] = {
    "status": lambda _: render_status(FULL),
    "peers": lambda _: render_peers(PEERS, FULL),
    "queues": lambda _: render_work(HOPS, FULL),
    "plan": lambda _: render_plan(PLAN),
    "demo": lambda path: peer_table(daemons(path)),
    "the demo's figures": lambda path: swarm_lines(RUN, daemons(path), 100.0),
}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("command", SHOWN)
def test_no_word_is_cut(tmp_path: Path, command: str, width: int) -> None:
    check_width(SHOWN[command](tmp_path), width)


@pytest.mark.parametrize("width", WIDTHS)
def test_what_is_left_out_is_counted_and_named(width: int) -> None:
    text = drawn(render_peers(PEERS, FULL), width)
    header = re.split(r" {2,}", text.splitlines()[0])
    out = re.findall(r"(\d+) columns? left out \(([^)]*)\): --wide or --json", " ".join(text.split()))
    named = out[0][1].split(", ") if out else []
    assert sorted([*header, *named]) == sorted(column.name for column in render._PEER_COLUMNS)
    assert not out or int(out[0][0]) == len(named)
    assert {"peer", "stage", "state"} <= set(header), "without them a row says nothing"


def test_status_of_a_large_swarm_counts_those_it_does_not_know_one_by_one() -> None:
    status: Status = replace(STATUS, peers={"0": 40, "1": 40, "2": 41}, unseen={"2": 38})
    assert "121 peers: 40 of stage 0, 40 of stage 1, 41 of stage 2" in drawn(render_status(status), 120)
    assert "38 more peers have no row (38 of stage 2)" in drawn(render_peers(PEERS[:3], status), 120)
    assert "1 more peer has no row (1 of stage 2)" in drawn(
        render_peers(PEERS[:3], replace(status, unseen={"2": 1})), 120
    )
    assert "no row" not in drawn(render_peers(PEERS[:3], STATUS), 120)


def test_microbatches_are_told_by_where_they_are() -> None:
    queues = Queues(forward=3, backward=0, in_flight=5, downstream=1)
    text = drawn(render_status(replace(STATUS, queues=queues)), 120)
    assert "5 microbatches: 3 waiting for the forward pass, 1 passed on to the next stage, 1 being computed" in text
    assert "no microbatch is here" in drawn(render_status(replace(STATUS, queues=Queues())), 120)
    work = render_work(HOPS, replace(STATUS, queues=replace(queues, in_flight=1, forward=0)))
    assert "1 microbatch: 1 passed on to the next stage" in drawn(work, 120)
    assert "kept until" not in drawn(work, 120)
