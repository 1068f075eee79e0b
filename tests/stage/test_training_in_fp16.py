"""The preset `tiny` learns as much in fp16 as in fp32.

CPUs without units for fp16 take twenty times as long for its products. So they are formed here as tensor cores form
them: of fp16 numbers, summed in fp32, rounded to fp16.
"""

import asyncio
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from swarmd.config import ComputeConfig, RunConfig
from swarmd.settings import load_run
from swarmd.stage.engine import StageEngine
from tests.stage.toy import train_pipeline

aten = torch.ops.aten
PRODUCTS: dict[Any, tuple[int, ...]] = {
    aten.mm.default: (0,),
    aten.addmm.default: (0,),
    aten.bmm.default: (0,),
    aten._scaled_dot_product_flash_attention_for_cpu.default: (0,),  # the logarithm of its sums stays fp32
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default: (0, 1, 2),
}
"""Operations whose inputs are made fp32, and which of their results are rounded to fp16."""


class TensorCores(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Forms products of fp16 tensors in fp32, and counts them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        rounded = PRODUCTS.get(func)
        halves = any(isinstance(it, torch.Tensor) and it.dtype is torch.float16 for it in args)
        if rounded is None or not halves:
            return func(*args, **(kwargs or {}))
        self.count += 1
        wide = tree_map_only(torch.Tensor, lambda it: it.float() if it.dtype is torch.float16 else it, (args, kwargs))
        result = func(*wide[0], **(wide[1] or {}))
        if isinstance(result, torch.Tensor):
            return result.half()
        return tuple(it.half() if number in rounded else it for number, it in enumerate(result))


def text_of(run: RunConfig, cache: Path) -> Callable[[RunConfig, int, int], bytes]:
    """The run's own text."""
    from swarmd.text.data import load_data

    data = load_data(run, cache_directory=cache)
    return lambda run, step, index: bytes(asyncio.run(data.microbatch(step, index)))


def last_losses(run: RunConfig, dtype: Any, cache: Path) -> tuple[float, list[StageEngine]]:
    losses, engines = train_pipeline(run, ComputeConfig(dtype), text_of(run, cache))
    return sum(losses[-20:]) / 20, engines


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_last_losses_are_those_of_fp32(tmp_path: Path) -> None:
    exact, ours, repeats, hops = [], [], 0, 0
    for seed in range(3):
        run = dataclasses.replace(load_run("tiny"), seed=seed)
        exact.append(last_losses(run, "fp32", tmp_path)[0])
        with TensorCores() as cores:
            loss, engines = last_losses(run, "fp16", tmp_path)
        assert cores.count > 1000
        ours.append(loss)
        repeats, hops = repeats + sum(it.repeats for it in engines), hops + sum(it.hops for it in engines)
    print(f"fp32 {exact}, fp16 {ours}, {repeats} of {hops} hops again")
    assert sum(ours) / 3 == pytest.approx(sum(exact) / 3, abs=0.015)
    assert repeats < hops / 100
