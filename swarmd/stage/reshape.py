"""The checkpoints of a run, cut into another number of stages: so that it can go on with more peers, or larger ones.

Parameters and moments are kept by their names in the whole model, which all cuttings share, so each tensor only changes
the file that it is in. Relies on `checkpoint` for verified states; knows no peers.
"""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from swarmd.config import RunConfig
from swarmd.errors import ConfigError
from swarmd.stage.checkpoint import KEEP_AT_LEAST, KeptRecord, save_stage
from swarmd.stage.export import find_whole, load_tensors
from swarmd.stage.model import StageModule
from swarmd.stage.state import OPTIMIZER_PREFIX, PARAMETER_PREFIX

log = logging.getLogger(__name__)

Recut = Callable[[KeptRecord, int], str]
"""Makes a version's record one of so many stages. Raises ConfigError."""

OF_ALL = ("version", f"{OPTIMIZER_PREFIX}updates")
"""Tensors that every stage has alike."""


def reshape(
    directories: Sequence[Path],
    run: RunConfig,
    target: RunConfig,
    output: Path,
    recut: Recut,
    told: Callable[[str], None] = log.warning,
) -> int:
    """Writes the newest version of which every stage is in some directory, cut as `target` says. `recut`: makes
    the version's record one of the new run; `told`: hears which newer ones are passed over, and why. Returns the
    version.

    Raises ConfigError if there is none, or the two runs differ in more than their stages; OSError.
    """
    _check(run, target)
    version, checkpoints = find_whole(directories, run, told)
    tensors: dict[str, Tensor] = {}
    for checkpoint in checkpoints:
        tensors.update(load_tensors(checkpoint))
    record = recut(checkpoints[0].record, target.model.stages)
    for stage in range(target.model.stages):
        names = names_of(target, stage)
        state = {name: value for name, value in tensors.items() if name in OF_ALL or _parameter(name) in names}
        save_stage(output, version, stage, safetensors.torch.save(state), record, KEEP_AT_LEAST)
    return version


def names_of(run: RunConfig, stage: int) -> frozenset[str]:
    """The parameters of a stage, by name. Allocates none."""
    with torch.device("meta"):
        return frozenset(StageModule(run.model, stage, stage).named())


def _parameter(name: str) -> str:
    """The parameter that a tensor is, or is a moment of: `optimizer.first.NAME`, `optimizer.first.NAME.codes`."""
    if name.startswith(PARAMETER_PREFIX):
        return name.removeprefix(PARAMETER_PREFIX)
    _, _, moment = name.removeprefix(OPTIMIZER_PREFIX).partition(".")
    return moment.removesuffix(".codes").removesuffix(".scales")


def _check(run: RunConfig, target: RunConfig) -> None:
    """Raises ConfigError if the checkpoints of one run are of no use to the other."""
    if dataclasses.replace(target.model, stages=run.model.stages) != run.model or target.optimizer != run.optimizer:
        raise ConfigError("the new settings are of another model or optimizer; change nothing but model.stages.")
    if run.model.shared and target.model.stages != run.model.stages:
        raise ConfigError(
            "each stage of this model shares one block among its layers, so its stages can't be cut anew."
        )
