"""The planner: its formulas against the real model and codecs, its placements against a dumb twin, its plans."""

import itertools
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from swarmd.config import CodecConfig, ModelConfig, RunConfig
from swarmd.errors import ConfigError
from swarmd.settings import load_run, preset_names
from swarmd.sim.engines.phantom import BYTES_PER_ELEMENT
from swarmd.sim.measure.square_cube import SHAPES
from swarmd.sim.planner import costs
from swarmd.sim.planner.costs import StageSpeed, find_wire
from swarmd.sim.planner.devices import DEVICES, Group, find_device, parse_peers, profile_from_plain
from swarmd.sim.planner.forecast import Question, forecast, scale_down
from swarmd.sim.planner.placement import Placement, plan_placement
from swarmd.sim.planner.plan import plan
from swarmd.sim.planner.rehearsal import Actor, Rehearsal, rehearse
from swarmd.sim.world.machine import Host, Machine
from swarmd.sizes import CONTEXT_BYTES, needed_bytes, resident_bytes, stage_parameters

MBPS = 1e6 / 8
PROFILE = {
    "name": "box",
    "device": "cpu, 1 threads",
    "cores": 2,
    "memory_bytes": 8e9,
    "points": [
        {
            "hidden": hidden,
            "tokens": 512,
            "forward_flops": flops,
            "forward_s": flops / 50e9,
            "backward_s": flops / 25e9,
            "forward_fixed_s": 0.001,
            "backward_fixed_s": 0.002,
            "logit_s": 1e-9,
        }
        for hidden, flops in ((128, 2e8), (512, 3.2e9))
    ],
    "round_s": {"contribution": 1e-9, "reduce": 1e-9, "assemble": 1e-9, "apply": 1e-9},
    "crowd": [1.0, 0.9],
}


def toy_run(*, stages: int = 3, microbatches: int = 24, hidden: int = 512, codec: str = "int8") -> RunConfig:
    model = ModelConfig(
        vocabulary=256, hidden=hidden, ffn=1376, heads=8, layers=2 * stages, stages=stages, sequence_length=256
    )
    assert codec in ("int8", "fp16")
    return RunConfig(
        name="toy", model=model, steps=10, sequences_per_step=microbatches, sequences_per_microbatch=1, validate_every=0
    )


def question(peers: str, run: RunConfig | None = None, wire: str = "int8", rtt_s: float = 0.01) -> Question:
    run = run or toy_run()
    return Question(run, parse_peers(peers), rtt_s, find_wire(wire), "auto")


# ------------------------------------------------------------------------------------------------- formulas


@pytest.mark.parametrize("preset", [name for name in preset_names() if name != "125m"])  # cut like 1b
def test_parameters_are_those_of_the_real_model(preset: str) -> None:
    from swarmd.stage.model import applied_parameters, distinct_parameters

    model = load_run(preset).model
    for stage in range(model.stages):
        assert stage_parameters(model, stage) == distinct_parameters(model, stage, stage)
    run = load_run(preset)
    products = 2.0 * run.tokens_per_microbatch * applied_parameters(model)
    embedding = 2.0 * run.tokens_per_microbatch * model.vocabulary * model.hidden  # looked up, not multiplied
    attention = 2.0 * run.tokens_per_microbatch * model.sequence_length * model.hidden * model.layers
    forward = sum(costs.stage_flops(run, stage) for stage in range(model.stages))
    assert forward == pytest.approx(products - embedding + attention, rel=1e-3)  # the last norm's gains


def test_operations_are_those_that_pytorch_counts() -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from swarmd.stage.model import StageModule

    run = toy_run()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        StageModule(run.model, 2)(torch.zeros(1, 256, 512))
    half_of_scores = 2.0 * 256 * 256 * 512 * 2  # half are needed; kernels count all, half, or none of them
    counted = counter.get_total_flops()
    ways = [counted + halves * half_of_scores for halves in (-1, 0, 1)]
    assert any(costs.stage_flops(run, 2) == pytest.approx(way, rel=1e-3) for way in ways)


@pytest.mark.parametrize("codec", ["fp32", "fp16", "bf16", "int8"])
def test_sizes_are_those_of_the_codecs(codec: str) -> None:
    import torch

    from swarmd.stage.codec import encode

    run = toy_run()
    encoded = encode(torch.randn(1, 256, 512), codec)
    assert find_wire(codec).nbytes(run) == encoded.nbytes


def test_memory_holds_what_an_engine_holds() -> None:
    run = toy_run()
    parameters = stage_parameters(run.model, 1)
    assert resident_bytes(run, 1) == 16 * parameters
    eight_bit = replace(run, optimizer=replace(run.optimizer, name="adamw8bit"))
    assert resident_bytes(eight_bit, 1) == 10 * parameters
    profiled = replace(DEVICES["T4"], cores=2)
    for dtype, width in (("fp32", 4), ("fp16", 2)):
        assert costs.memory_bytes(run, 1, profiled, dtype) == needed_bytes(run, 1, width)
        assert costs.memory_bytes(run, 1, DEVICES["T4"], dtype) == needed_bytes(run, 1, width) + CONTEXT_BYTES


@pytest.mark.parametrize(
    ("peers", "asked", "precision", "dtypes"),
    [
        ("2xT4,1xA100", "auto", "any", ["fp16", "bf16"]),
        ("2xT4,1xA100", "bf16", "any", ["bf16", "bf16"]),
        ("2xT4,1xA100", "auto", "fp32", ["fp32", "fp32"]),
    ],
)
def test_each_device_is_planned_in_the_dtype_that_a_node_chooses_there(
    peers: str, asked: str, precision: Literal["any", "fp32"], dtypes: list[str]
) -> None:
    asking = replace(question(peers, run=replace(toy_run(), precision=precision)), dtype=asked)
    assert [asking.dtype_on(group.device) for group in asking.groups] == dtypes


def test_forwards_run_twice_where_graphs_are_not_kept() -> None:
    run = load_run("13b-shared")
    settings: tuple[bool | Literal["auto"], ...] = (False, True, "auto")
    by_setting = {}
    for recompute in settings:
        its = replace(run, recompute=recompute)
        by_setting[recompute] = [
            costs.recompute_share(its, stage, replace(DEVICES["A100"], memory_bytes=memory), "bf16", held=4.0)
            for stage, memory in ((1, 100e9), (2, 100e9), (1, 14e9), (2, 16e9))
        ]
    assert by_setting[False] == [0.0, 0.0, 0.0, 0.0]
    assert by_setting[True] == [1.0, 0.0, 1.0, 0.0], "the tail's graph is used at once"
    assert by_setting["auto"] == [0.0, 0.0, 1.0, 1.0], "in the small ones half of what is free holds no graph"


def test_wider_stages_use_a_device_better() -> None:
    """The first half of the square-cube law, and the published shares of an A100's peak (docs/planning.md)."""
    shares = []
    for hidden in (768, 2304, 25_600):
        model = ModelConfig(
            vocabulary=2,
            hidden=hidden,
            ffn=4 * hidden,
            heads=hidden // 128,
            layers=3,
            stages=3,
            sequence_length=2048,
        )
        run = RunConfig(name="wide", model=model, sequences_per_step=4, sequences_per_microbatch=4, recompute=False)
        roomy = replace(DEVICES["A100"], memory_bytes=1e15)
        speed = costs.stage_speed(run, 1, roomy, "bf16", find_wire("int8"), pace=1.0, held=1.0, replicas=1)
        shares.append(3 * costs.stage_flops(run, 1) / speed.total_s / roomy.half_flops)
    assert shares == sorted(shares)
    assert shares[1] == pytest.approx(0.44, abs=0.03)
    assert shares[2] == pytest.approx(0.52, abs=0.03)


def test_a_profile_is_read_between_its_widths() -> None:
    device = profile_from_plain(PROFILE)
    assert (device.fast_dtype, profile_from_plain({**PROFILE, "dtype": "bf16"}).fast_dtype) == ("fp32", "bf16")
    with pytest.raises(ValueError, match="it measured half, which is none of fp32"):
        profile_from_plain({**PROFILE, "dtype": "half"})
    times = [
        costs.stage_speed(
            toy_run(hidden=hidden), 1, device, "fp32", find_wire("int8"), pace=1.0, held=1.0, replicas=1
        ).total_s
        for hidden in (64, 256, 512, 1024)
    ]
    assert times == sorted(times)
    half = costs.stage_speed(toy_run(), 1, device, "fp32", find_wire("int8"), pace=0.5, held=1.0, replicas=1)
    assert half.total_s == pytest.approx(2 * times[2])


# ------------------------------------------------------------------------------------------------- reading


def test_peers_are_read() -> None:
    groups = parse_peers("32xT4@200Mbps$0.35, 4xa100-80gb@1Gbps,rtx3090*0.5@100/20Mbps", ["T4=0.4"])
    assert [(group.count, group.device.name, group.price, group.pace) for group in groups] == [
        (32, "T4", 0.4, 1.0),
        (4, "A100-80GB", None, 1.0),
        (1, "RTX3090", None, 0.5),
    ]
    assert [(group.down, group.up) for group in groups] == [
        (200 * MBPS, 200 * MBPS),
        (1000 * MBPS, 1000 * MBPS),
        (100 * MBPS, 20 * MBPS),
    ]
    assert groups[2].label == "RTX3090*0.5@100/20Mbps"


@pytest.mark.parametrize(
    ("text", "prices", "says"),
    [
        ("", [], "names no peer"),
        ("32xT5@200Mbps", [], "no device is called T5"),
        ("32xT4@fast", [], "can't be read"),
        ("0xT4", [], "asks for 0 peers"),
        ("T4@0Mbps", [], "number over 0"),
        ("T4", ["A100=1"], "does not name"),
        ("T4", ["T4=x"], "not negative"),
        ("99999xT4", [], "plan for fewer"),
        ("2xnone.json", [], "swarmd profile"),
    ],
)
def test_mistakes_are_one_sentence(text: str, prices: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        parse_peers(text, prices)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_profile_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "box.json"
    path.write_text(json.dumps(PROFILE))
    assert find_device(str(path)).name == "box"
    for wrong in ("[]", "{}", "no json", json.dumps({**PROFILE, "points": []})):
        path.write_text(wrong)
        with pytest.raises(ConfigError, match="is not a profile"):
            find_device(str(path))


def test_every_device_names_its_source() -> None:
    for device in DEVICES.values():
        assert "NVIDIA" in device.source
        assert device.half_flops > device.fp32_flops > 0


# ------------------------------------------------------------------------------------------------- placement


def test_the_placement_is_near_that_of_a_dumb_twin() -> None:
    rng = random.Random(0)
    for _ in range(60):
        stages, sizes = rng.randrange(1, 4), [rng.randrange(1, 5) for _ in range(rng.randrange(1, 3))]
        rates = [[rng.choice((0.0, 1.0, 1.5, 4.0)) for _ in range(stages)] for _ in sizes]
        ways = [_splits(size, stages) for size in sizes]
        best = max(Placement(counts).throughput(rates) for counts in itertools.product(*ways))
        found = plan_placement(sizes, rates)
        assert (found is None) == (best == 0)
        if found is not None:
            assert [sum(row) for row in found.counts] == sizes or any(0.0 in row for row in rates)
            assert found.throughput(rates) >= 0.8 * best


def _splits(size: int, stages: int) -> list[tuple[int, ...]]:
    return [each for each in itertools.product(range(size + 1), repeat=stages) if sum(each) == size]


# ------------------------------------------------------------------------------------------------- rehearsal


def test_a_single_row_of_peers_is_as_fast_as_its_devices() -> None:
    """Known beforehand: three equal devices, fast links. The slowest stage is busy all the time."""
    speed = StageSpeed(1.0, 2.0, 0.0, {})
    run = toy_run(microbatches=40)
    actors = [Actor(stage, speed, 1e9, 1e9) for stage in range(3)]
    done = rehearse(Rehearsal(run, actors, find_wire("int8"), rtt_s=0.0, parameters=[1000] * 3))
    assert done.rate == pytest.approx(1 / 3.0, rel=0.04)
    assert all(actor.busy > 0.93 for actor in done.actors)
    assert 120.0 < done.step_s < 135.0


def test_a_slow_link_is_what_limits() -> None:
    """A tensor takes 2 s, and a middle stage sends two and gets two a microbatch; its device takes 1 s."""
    speed = StageSpeed(0.3, 0.7, 0.0, {})
    run = toy_run(microbatches=40)
    tensor = find_wire("int8").nbytes(run)
    actors = [Actor(stage, speed, tensor / 2, tensor / 2) for stage in range(3)]
    done = rehearse(Rehearsal(run, actors, find_wire("int8"), rtt_s=0.0, parameters=[1000] * 3))
    assert done.rate == pytest.approx(1 / 4.0, rel=0.1)
    assert done.actors[1].sent > 0.9
    assert done.actors[1].busy < 0.3


def test_steps_that_take_less_than_a_look_at_the_world_are_measured_all_the_same() -> None:
    """A round trip is most of such a step, so steps grow by a few milliseconds as round trips do."""
    run, speed = toy_run(microbatches=4), StageSpeed(0.001, 0.002, 0.0, {})
    actors = [Actor(stage, speed, 1e9, 1e9) for stage in (0, 1, 1, 2, 2)]
    steps = []
    for rtt_ms in range(14, 27):
        done = rehearse(Rehearsal(run, actors, find_wire("int8"), rtt_s=rtt_ms / 1e3, parameters=[1000] * 3))
        assert done.actors[0].microbatches == pytest.approx(done.rate, rel=0.5), "all microbatches come from the head"
        steps.append(done.step_s)
    growth = [late - early for early, late in itertools.pairwise(steps)]
    assert all(0.002 < each < 0.03 for each in growth), growth


def test_traffic_that_is_told_is_what_the_links_carried() -> None:
    speed = StageSpeed(1.0, 2.0, 0.0, {})
    run, wire = toy_run(microbatches=40), find_wire("int8")
    actors = [Actor(stage, speed, 1e8, 1e8) for stage in range(3)]
    done = rehearse(Rehearsal(run, actors, wire, rtt_s=0.0, parameters=[1000] * 3))
    for actor, (sent, received) in zip(done.actors, done.traffic, strict=True):
        assert sent == pytest.approx(actor.sent * 1e8 * 40 / done.rate, rel=0.1)
        assert received == pytest.approx(actor.received * 1e8 * 40 / done.rate, rel=0.1)


def test_processes_share_their_hosts_cores() -> None:
    host, machines = Host((1.0, 0.8)), [Machine(name) for name in "abcd"]
    for machine in machines:
        machine.host = host
    for number, expected in enumerate((1.0, 0.8, 2 * 0.8 / 3, 2 * 0.8 / 4)):
        machines[number].set_busy(True)
        assert all(1 / machine.slowdown == pytest.approx(expected) for machine in machines[: number + 1])
    machines[0].set_busy(False)
    assert 1 / machines[1].slowdown == pytest.approx(2 * 0.8 / 3)


def test_four_peers_on_two_cores_are_as_fast_as_two() -> None:
    device = profile_from_plain({**PROFILE, "crowd": [1.0, 1.0]})
    run = toy_run(stages=2, microbatches=48)
    rates = [
        forecast(
            Question(run, (Group(count, device, 1e9, 1e9),), 0.0, find_wire("int8"), "fp32", one_machine=True)
        ).tokens_per_second
        for count in (2, 4)
    ]
    assert rates[1] == pytest.approx(rates[0], rel=0.12)


# ------------------------------------------------------------------------------------------------- plans


@pytest.mark.slow
def test_a_plan_answers_everything() -> None:
    it = plan(question("6xT4@200Mbps$0.35,2xA100@1Gbps$1.1", run=toy_run(microbatches=400)))
    look = it.outlook
    assert sum(row.count for row in look.rows) == it.peers == 8
    assert {row.stage for row in look.rows} == {0, 1, 2}
    assert all(0 < row.utilisation <= 1 and row.sent > 0 and row.memory_share < 1 for row in look.rows)
    assert it.run_seconds == pytest.approx(10 * look.step_s)
    assert it.price_per_hour is not None
    assert it.price_per_hour == pytest.approx(6 * 0.35 + 2 * 1.1)
    assert it.run_price == pytest.approx(it.price_per_hour * it.run_seconds / 3600)
    assert [variant.what for variant in it.wires] == ["fp16", "int8", "4-bit", "bottleneck-2", "maxout-2"]
    assert [variant.exists for variant in it.wires] == [True, True, False, False, False]
    assert [variant.what for variant in it.growth] == ["8", "16", "32"]
    assert it.growth[2].tokens_per_second > it.growth[0].tokens_per_second


def test_on_a_thin_link_the_codec_decides() -> None:
    thin = [forecast(question("3xA100@20Mbps", wire=wire)) for wire in ("fp16", "int8", "4-bit")]
    assert thin[1].tokens_per_second / thin[0].tokens_per_second == pytest.approx(2.0, rel=0.15)
    assert thin[2].tokens_per_second / thin[1].tokens_per_second == pytest.approx(2.0, rel=0.15)
    assert "link" in thin[0].bottleneck


def test_on_a_thick_link_the_device_decides() -> None:
    run = toy_run(hidden=2048, microbatches=60)
    it = forecast(question("3xT4@10Gbps", run=run, rtt_s=0.001))
    assert "compute" in it.bottleneck
    assert it.of_bound > 0.8


def test_a_scaled_rehearsal_tells_what_the_whole_would() -> None:
    """18 peers are rehearsed as 9; the whole swarm and step give nearly the same."""
    run = toy_run(hidden=1024, microbatches=240)
    small = forecast(question("18xT4@1Gbps", run=run))
    assert "9 of the 18 peers" in small.rehearsed
    groups = parse_peers("18xT4@1Gbps")
    speeds = [
        costs.stage_speed(run, stage, groups[0].device, "fp32", find_wire("int8"), pace=1.0, held=1.0, replicas=6)
        for stage in range(3)
    ]
    actors = [Actor(stage, speeds[stage], groups[0].up, groups[0].down) for stage in range(3) for _ in range(6)]
    parameters = [stage_parameters(run.model, stage) for stage in range(3)]
    whole = rehearse(Rehearsal(run, actors, find_wire("int8"), rtt_s=0.01, parameters=parameters))
    assert small.step_s == pytest.approx(whole.step_s, rel=0.15)


@pytest.mark.parametrize("peers", [40, 1000])
def test_more_peers_than_microbatches_are_no_faster_than_a_microbatch_on_its_way(peers: int) -> None:
    """Each goes through three stages and back, over links of 25 ms, and the step is committed after that."""
    run, rtt_s = load_run("tiny"), 0.05
    it = forecast(Question(run, (Group(peers, DEVICES["T4"], 1e7, 1e7),), rtt_s, find_wire("int8"), "fp32"))
    assert run.microbatches < peers / run.model.stages
    assert it.step_s > 2 * (run.model.stages - 1) * rtt_s / 2
    assert it.tokens_per_second < run.microbatches * run.tokens_per_microbatch / (2 * rtt_s)
    assert all(row.utilisation < run.microbatches / row.count for row in it.rows)


def test_a_smaller_swarm_keeps_every_kind_of_peer() -> None:
    placement = Placement(((0, 32, 0), (2, 1, 1)))
    small = scale_down(placement)
    assert small.counts == ((0, 11, 0), (1, 1, 1))
    assert scale_down(Placement(((2, 3),))).counts == ((2, 3),)


def test_what_does_not_fit_is_said() -> None:
    run = load_run("13b-shared")
    with pytest.raises(ConfigError, match="GB that stage 0 of 13b-shared needs"):
        forecast(question("8xRTX2080Ti", run=run))
    with pytest.raises(ConfigError, match="3 stages, for which 2 peers can't be enough"):
        forecast(question("2xA100-80GB", run=run))
    with pytest.raises(ConfigError, match=r"8\.5 MB and would take 1 min 08 s to or from A100"):
        forecast(question("4xA100@1Mbps", run=run))
    with pytest.raises(ConfigError, match=r"would take .* or longer"):
        forecast(question("3xA100*0.000001@1Gbps", run=run))
    asked = replace(question("3xV100-32GB", run=replace(run, sequences_per_step=24)), dtype="bf16")
    notes = " ".join(plan(asked, variants=False).notes)
    assert "V100-32GB has no units for bf16" in notes


def test_the_square_cube_shapes_grow_as_the_law_says() -> None:
    ratios = []
    for shape in (SHAPES[0], SHAPES[1], SHAPES[2]):
        run = shape.run()
        ratios.append(costs.block_flops(run) / find_wire("int8").nbytes(run))
    assert ratios[1] / ratios[0] == pytest.approx(4096 / 768, rel=0.1)  # compute over traffic grows like the width
    assert ratios[2] / ratios[1] == pytest.approx(3.0, rel=0.1)
    assert BYTES_PER_ELEMENT[CodecConfig().averaging] == pytest.approx(2.008, abs=1e-3)
