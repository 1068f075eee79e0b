"""The whole model from its stages' checkpoints, and text that it writes.

Relies on `checkpoint` for verified states and on `model` for the names that all cuttings share. Knows no peers: it is
given the directories in which they keep their checkpoints.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from swarmd.config import RunConfig
from swarmd.errors import ConfigError
from swarmd.stage.checkpoint import Checkpoint, load_stage, saved
from swarmd.stage.model import StageModule, whole_model
from swarmd.stage.state import PARAMETER_PREFIX
from swarmd.text.tokenizer import load_tokenizer
from swarmd.whole import PassedOver, name_stages

log = logging.getLogger(__name__)

TEMPERATURE = 0.7  # below 1 the model keeps to what it is surer of, which reads better from a small one


def find_whole(
    directories: Sequence[Path], run: RunConfig, told: Callable[[str], None] = log.warning
) -> tuple[int, list[Checkpoint]]:
    """The newest version of which every stage has a whole checkpoint in some directory, stage by stage. `told`: hears
    which newer ones are passed over, and why. Raises ConfigError if there is none.
    """
    stages, passed = run.model.stages, list[PassedOver]()
    versions = {version for directory in directories for version, _ in saved(directory)}
    for version in sorted(versions, reverse=True):
        found = [_find(directories, stage, version) for stage in range(stages)]
        whole = [checkpoint for checkpoint in found if checkpoint is not None]
        if len(whole) == stages:
            for newer in passed:
                told(str(newer))
            return version, whole
        lacking = tuple(stage for stage, checkpoint in enumerate(found) if checkpoint is None)
        passed.append(PassedOver(version, lacking, stages))
    places = ", ".join(map(str, directories)) or "no directory"
    nearest = min(passed, key=lambda it: (len(it.lacking), -it.version), default=None)
    lacks = f" (version {nearest.version} lacks {name_stages(nearest.lacking)})" if nearest is not None else ""
    raise ConfigError(
        f"no version has whole checkpoints of all {stages} stages in {places}{lacks}; name all homes that have some, "
        "or let the run save one."
    )


def load_tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The parameters of a checkpoint, by name. Raises ConfigError."""
    try:
        return safetensors.torch.load(checkpoint.state)
    except safetensors.SafetensorError as error:
        raise ConfigError(
            f"the checkpoint of stage {checkpoint.stage} holds no tensors ({error}); use another."
        ) from error


def assemble(directories: Sequence[Path], run: RunConfig) -> tuple[int, StageModule]:
    """The newest version of which every stage has a whole checkpoint in some directory, as one module on the CPU.

    Raises ConfigError if there is none, or if the checkpoints are of another model.
    """
    version, whole = find_whole(directories, run)
    return version, _module(whole, run)


@torch.inference_mode()
def generate(
    directories: Sequence[Path],
    run: RunConfig,
    prompt: str,
    count: int,
    *,
    temperature: float = TEMPERATURE,
    seed: int = 0,
) -> str:
    """The prompt and `count` tokens after it, drawn from the model of the newest checkpoints. Raises ConfigError."""
    _, module = assemble(directories, run)
    tokenizer = load_tokenizer(run.data.tokenizer)
    ids = [int(number) for number in tokenizer.encode(prompt)] or [tokenizer.separator or 0]
    draw = torch.Generator().manual_seed(seed)
    for _ in range(count):
        seen = torch.tensor([ids[-run.model.sequence_length :]])
        logits = module(seen)[0, -1]
        ids.append(int(torch.multinomial(torch.softmax(logits / temperature, dim=-1), 1, generator=draw)))
    return tokenizer.decode(ids)


def _find(directories: Sequence[Path], stage: int, version: int) -> Checkpoint | None:
    candidates = (load_stage(directory, stage, version) for directory in directories)
    return next((checkpoint for checkpoint in candidates if checkpoint is not None), None)


def _module(checkpoints: Sequence[Checkpoint], run: RunConfig) -> StageModule:
    values: dict[str, Tensor] = {}
    for checkpoint in checkpoints:
        tensors = load_tensors(checkpoint)
        values.update(
            {
                name.removeprefix(PARAMETER_PREFIX): value
                for name, value in tensors.items()
                if name.startswith(PARAMETER_PREFIX)
            }
        )
    module = whole_model(run.model)
    try:
        module.load_state_dict(values)
    except RuntimeError as error:
        raise ConfigError(
            "the checkpoints are of another model than these settings; give the settings of that run."
        ) from error
    return module.eval()
