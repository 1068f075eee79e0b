"""A profile: what it measures, with how little memory, and which widths it leaves out."""

import weakref
from typing import Any

import pytest
import torch

from swarmd.errors import ConfigError
from swarmd.sim.planner.devices import profile_from_plain
from swarmd.stage import probe, profile, release
from swarmd.stage.engine import StageEngine


@pytest.fixture(autouse=True)
def few_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "CPU_WIDTHS", (64, 128))
    monkeypatch.setattr(profile, "TURNS", 1)
    monkeypatch.setattr(profile, "TURN_REPEATS", 1)
    monkeypatch.setattr(profile, "REPEATS", 1)
    monkeypatch.setattr(probe, "TOKENS", {"cpu": (1, 16), "cuda": (1, 16)})


def test_a_profile_can_be_planned_with_and_says_which_dtype_was_measured() -> None:
    measured = profile.measure_profile("cpu", 1, crowded=False)
    assert measured["dtype"] == "fp32"
    device = profile_from_plain(measured)
    assert [point.hidden for point in device.points] == [64, 128]


def test_one_stage_at_a_time_is_held_without_optimizer_and_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[weakref.ref[StageEngine]] = []
    beside: list[int] = []

    class Watched(StageEngine):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            beside.append(sum(engine() is not None for engine in built))
            super().__init__(*arguments, **options)
            built.append(weakref.ref(self))
            held = [self.sum.flat, *self.optimizer.tensors().values()]
            assert {tensor.device.type for tensor in held if tensor.numel() > 1} == {"meta"}

    monkeypatch.setattr(probe, "StageEngine", Watched)
    profile.measure_point("cpu", 64)
    assert beside == [0, 0, 0, 0]  # a middle stage and a last one, of few blocks and of many


def test_a_stage_that_trains_holds_both() -> None:
    engine = StageEngine(probe.plan_probe(64, "cpu", 1), 1)
    held = [engine.sum.flat, *engine.optimizer.tensors().values()]
    assert {tensor.device.type for tensor in held} == {"cpu"}


def lack_memory_over(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wider stages than that find no memory on the device."""

    class Small(StageEngine):
        def __init__(self, run: Any, *arguments: Any, **options: Any) -> None:
            if run.model.hidden > width:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 402.00 MiB.")
            super().__init__(run, *arguments, **options)

    monkeypatch.setattr(probe, "StageEngine", Small)


def test_a_width_that_does_not_fit_is_left_out_with_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    lack_memory_over(64, monkeypatch)
    told: list[str] = []
    measured = profile.measure_profile("cpu", 1, crowded=False, told=told.append)
    assert [point["hidden"] for point in measured["points"]] == [64]
    assert "width 128 doesn't fit into the free memory of cpu, and is left out" in told


def test_no_width_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    lack_memory_over(32, monkeypatch)
    with pytest.raises(ConfigError, match=r"^the free memory of cpu is too little to measure anything; end what uses"):
        profile.measure_profile("cpu", 1, crowded=False)


def test_another_failure_is_not_taken_for_a_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")

    monkeypatch.setattr(profile, "measure_point", fail)
    with pytest.raises(RuntimeError, match="no kernel image"):
        profile.measure_profile("cpu", 1, crowded=False)


def test_adding_to_a_sum_is_part_of_a_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "measure_addition", lambda *_: 5.0)
    assert profile.measure_point("cpu", 64)["backward_s"] > 5.0


@pytest.mark.parametrize(("device", "emptied"), [("cpu", 0), ("cuda:0", 1)])
def test_a_card_s_allocator_is_emptied_with_what_it_holds_no_more(
    device: str, emptied: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    monkeypatch.setattr("gc.collect", lambda: order.append("collect"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: order.append("empty"))
    release.release(torch.device(device))
    assert order == ["collect", *["empty"] * emptied]
