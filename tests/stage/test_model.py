"""The cut model is the whole model; its sizes are those of the presets."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from swarmd.settings import load_run
from swarmd.sim.engines.training import as_ids, toy_tokens
from swarmd.stage.model import (
    StageModule,
    applied_parameters,
    block_keys,
    build_stage,
    build_whole,
    distinct_parameters,
    loss_sum,
)
from tests.stage.toy import toy_run

ROOT = Path(__file__).parents[2]
BLOCK_13B = 268_435_456 + 2 * 4_096  # matrices and the gains of its two norms


def test_13b_shared_has_the_size_it_is_named_after() -> None:
    model = load_run("13b-shared").model
    with torch.device("meta"):
        module = StageModule(model, 1)
    assert sum(parameter.numel() for parameter in module.parameters()) == BLOCK_13B
    assert 1.0e9 <= distinct_parameters(model) <= 1.3e9
    assert 12.5e9 <= applied_parameters(model) <= 13.5e9


@pytest.mark.parametrize(("preset", "low", "high"), [("125m", 120e6, 170e6), ("1b", 0.95e9, 1.15e9)])
def test_presets_have_the_size_they_are_named_after(preset: str, low: float, high: float) -> None:
    model = load_run(preset).model
    assert low <= distinct_parameters(model) == applied_parameters(model) <= high
    assert distinct_parameters(model) == sum(distinct_parameters(model, k, k) for k in range(model.stages))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("stages", [2, 4])
def test_stages_in_a_row_equal_the_whole_in_loss_and_gradients(stages: int, shared: bool) -> None:
    run = toy_run(stages=stages, shared=shared)
    whole = build_whole(run.model, run.seed)
    parts = [build_stage(run.model, stage, run.seed) for stage in range(stages)]
    ids = as_ids(run, toy_tokens(run, 1, 0))

    expected = loss_sum(whole(ids[:, :-1]), ids[:, 1:])
    x = ids[:, :-1]
    for part in parts:
        x = part(x)
    actual = loss_sum(x, ids[:, 1:])

    assert actual.item() == expected.item()
    names = list(whole.named())
    gradients = dict(zip(names, torch.autograd.grad(expected, list(whole.named().values())), strict=True))
    cut = {name: parameter for part in parts for name, parameter in part.named().items()}
    assert list(cut) == names, "no parameter in two stages, none missing, the same order"
    for name, gradient in zip(cut, torch.autograd.grad(actual, list(cut.values())), strict=True):
        torch.testing.assert_close(gradient, gradients[name], rtol=1e-6, atol=1e-7, msg=name)


def test_any_cutting_starts_from_the_same_parameters() -> None:
    model = toy_run(stages=2).model
    whole = build_whole(model, seed=5).named()
    four = dataclasses.replace(model, stages=4)
    for stage in range(4):
        for name, parameter in build_stage(four, stage, seed=5).named().items():
            assert torch.equal(parameter, whole[name]), name
    assert not torch.equal(build_whole(model, seed=6).named()["head.weight"], whole["head.weight"])


def test_names_tell_layers_and_shared_blocks() -> None:
    model = toy_run(stages=2).model
    assert block_keys(model, 1) == ["2", "3"]
    assert "blocks.3.attention.query.weight" in build_stage(model, 1, 0).named()
    shared = dataclasses.replace(model, shared=True)
    assert block_keys(shared, 1) == ["s1", "s1"]
    assert len(build_stage(shared, 1, 0).blocks) == 1


def test_matrices_start_with_the_deviation_that_was_asked_for() -> None:
    model = toy_run().model
    named = build_whole(model, seed=1).named()
    assert named["head.weight"].std().item() == pytest.approx(model.init_std, rel=0.03)
    down = named["blocks.0.ffn.down.weight"].std().item()
    assert down == pytest.approx(model.init_std / (2 * model.layers) ** 0.5, rel=0.06)
    assert bool((named["final_norm.weight"] == 1).all())


def test_a_token_sees_only_those_before_it() -> None:
    run = toy_run()
    whole = build_whole(run.model, run.seed)
    ids = as_ids(run, toy_tokens(run, 1, 0))[:, :-1]
    changed = ids.clone()
    changed[:, 10] = (changed[:, 10] + 1) % 256
    before, after = whole(ids), whole(changed)
    assert torch.equal(before[:, :10], after[:, :10])
    assert not torch.allclose(before[:, 10:], after[:, 10:])


def test_positions_matter() -> None:
    run = toy_run()
    whole = build_whole(run.model, run.seed)
    one_order, other_order = whole(torch.tensor([[1, 2, 3]])), whole(torch.tensor([[2, 1, 3]]))
    assert not torch.allclose(one_order[:, -1], other_order[:, -1])


@pytest.mark.slow
def test_building_and_training_a_stage_loads_no_compiler() -> None:
    """torch._dynamo would cost every daemon 1.1 s and 73 MiB at its start."""
    program = (
        "import sys\n"
        "from swarmd.stage.engine import StageEngine\n"
        "from swarmd.values import HopId\n"
        "from tests.stage.toy import toy_run\n"
        "run = toy_run(stages=2)\n"
        "head, tail = StageEngine(run, 0), StageEngine(run, 1)\n"
        "tokens = bytes(4 * run.sequences_per_microbatch * (run.model.sequence_length + 1))\n"
        "hop = HopId(1, 0)\n"
        "result = tail.tail(hop, tokens, head.forward(hop, tokens, None, codec='fp32'), codec='fp32')\n"
        "head.backward(hop, result.gradient, codec='fp32')\n"
        "print('torch._dynamo' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["False"]
