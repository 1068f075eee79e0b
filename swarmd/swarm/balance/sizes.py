"""The size of a stage: arithmetic on a run's settings, with the model's formulas; tests hold it to the real model."""

from swarmd.config import ModelConfig, RunConfig

FP32, MOMENTS_FP32, MOMENTS_8BIT = 4, 8, 2  # bytes per parameter


def block_parameters(model: ModelConfig) -> int:
    """Parameters of one block: four matrices of attention, three of SwiGLU, two gains."""
    return 4 * model.hidden**2 + 3 * model.hidden * model.ffn + 2 * model.hidden


def stage_parameters(model: ModelConfig, stage: int) -> int:
    """Distinct ones that a peer of the stage holds."""
    blocks = 1 if model.shared else model.layers // model.stages
    count = blocks * block_parameters(model)
    if stage == 0:
        count += model.vocabulary * model.hidden
    if stage == model.stages - 1:
        count += (model.vocabulary + 1) * model.hidden
    return count


def state_bytes(run: RunConfig, stage: int) -> float:
    """Bytes of device memory that a stage's state needs: parameters, sum, moments, and the averaged gradient with the
    next version's parameters while a step is applied (a microbatch's gradients need no more).
    """
    moments = MOMENTS_8BIT if run.optimizer.name.endswith("8bit") else MOMENTS_FP32
    return stage_parameters(run.model, stage) * (4.0 * FP32 + moments)


def lacking(run: RunConfig, stage: int, memory_bytes: float) -> str:
    """Why a device can't hold a stage, in a sentence; "" if it may. `memory_bytes`: that it has; 0: unknown."""
    need = state_bytes(run, stage)
    if 0 < memory_bytes < need:
        return f"stage {stage} takes {need / 1e9:.1f} GB at least, and this device has {memory_bytes / 1e9:.1f} GB"
    return ""


def least_bytes(run: RunConfig, stage: int) -> float:
    """The least that a stage takes of its device: its state, the table of positions, and what comes in and goes
    out of it for one microbatch.
    """
    model = run.model
    comes_in = model.hidden if stage > 0 else 0
    goes_out = model.hidden if stage < model.stages - 1 else model.vocabulary
    table = model.sequence_length * model.hidden / model.heads
    return state_bytes(run, stage) + FP32 * (run.tokens_per_microbatch * (comes_in + goes_out) + table)


def unfit(run: RunConfig, memory_bytes: float, wanted: int | None = None) -> str:
    """Why a device can take no part in a run, in a sentence; "" if it may. `wanted`: the only stage that it would
    serve. `memory_bytes`: that it has; 0: unknown.
    """
    last = run.model.stages - 1
    stages = (0, min(1, last), last) if wanted is None else (wanted,)  # those between are equal
    need = min(least_bytes(run, stage) for stage in stages)
    if not 0 < memory_bytes < need:
        return ""
    which = f"stage {wanted}" if wanted is not None else "the smallest stage"
    takes = f"{which} of run {run.name} takes {need / 1e9:,.1f} GB at least"
    return f"{takes}, and this device has {memory_bytes / 1e9:,.1f} GB"
