"""The size of a stage: arithmetic on a run's settings, with the model's formulas; tests hold it to the real model."""

from swarmd.config import ModelConfig, RunConfig

FP32, HALF = 4, 2  # bytes of an element
MOMENTS_FP32, MOMENTS_8BIT = 8, 2  # bytes per parameter
LOSS_TOKENS = 1024  # whose logits exist at a time: `CHUNK` of swarmd/stage/loss.py
TEMPORARIES, TEMPORARIES_8BIT = 2, 4  # tensors of a parameter's size beside its next version, while that is made
DIGEST_ELEMENTS = 1 << 20  # that are hashed at a time, in int64 and a product: `PIECE` of swarmd/stage/gradients.py
SCORE_BYTES = 4.5  # per score of attention in a graph, where no kernel fuses it
SCORES_PASSING = 6  # bytes per score besides, while gradients pass it
CONTEXT_BYTES = 0.6e9  # of CUDA's context and workspaces, until measured


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


def resident_bytes(run: RunConfig, stage: int) -> float:
    """Bytes of a stage's parameters, sum and moments: what is on the device all the time."""
    moments = MOMENTS_8BIT if run.optimizer.name.endswith("8bit") else MOMENTS_FP32
    return stage_parameters(run.model, stage) * (2.0 * FP32 + moments)


def application_bytes(run: RunConfig, width: int, *, fused: bool = True) -> float:
    """Bytes of one block application's graph for a microbatch. width: of an element of its products; fused: attention
    by a kernel that keeps no scores.
    """
    model, tokens = run.model, run.tokens_per_microbatch
    kept = tokens * (width * (14.0 * model.hidden + 4 * model.ffn) + FP32 * model.hidden)
    return kept if fused else kept + SCORE_BYTES * _scores(run)


def graph_bytes(run: RunConfig, width: int, *, fused: bool = True) -> float:
    """Bytes of all graphs of a stage's forward, if they are kept, with the cast weights that they hold, and what is
    there besides while the last of them is made: half as much as one application's.
    """
    model, applications = run.model, run.model.layers // run.model.stages
    cast = (width if width < FP32 else 0) * (1 if model.shared else applications) * block_parameters(model)
    return (applications + 0.5) * application_bytes(run, width, fused=fused) + cast


def input_bytes(run: RunConfig) -> float:
    """Bytes of the inputs of a stage's blocks: the residual stream, fp32, before each."""
    return float(run.model.layers // run.model.stages * run.tokens_per_microbatch * run.model.hidden * FP32)


def computing_bytes(run: RunConfig, stage: int, width: int = HALF, *, fused: bool = True) -> float:
    """The most that is on the device while a microbatch's gradients are formed, one block after another: what is
    resident, the gradients, the cast weights of a block, its largest gradient once more, the blocks' inputs, a block's
    graph; at the ends embedding and unembedding.
    """
    model, head, tail = run.model, stage == 0, stage == run.model.stages - 1
    applications, stream = model.layers // model.stages, FP32 * run.tokens_per_microbatch * model.hidden
    blocks = 1 if model.shared else applications
    words = float(model.vocabulary * model.hidden)
    resident, formed = resident_bytes(run, stage), FP32 * blocks * block_parameters(model)
    cast = width if width < FP32 else 0
    casting = cast * block_parameters(model)
    passing = float(FP32 * model.hidden * max(model.ffn, model.hidden))
    if not fused:
        passing = max(passing, SCORES_PASSING * _scores(run))
    streams = (applications + (6 if tail else 5)) * stream
    through_block = formed + casting + passing + streams + application_bytes(run, width, fused=fused)
    if tail:
        through_block += FP32 * words
    logits = min(LOSS_TOKENS, run.tokens_per_microbatch) * model.vocabulary * (FP32 + 2 * width)
    through_loss = tail * ((FP32 + 2 * cast) * words + logits + (applications + 4) * stream)
    through_embedding = head * (formed + 2 * FP32 * words + 3 * stream)
    return resident + max(through_block, through_loss, through_embedding)


def stepping_bytes(run: RunConfig, stage: int) -> float:
    """The most that is on the device while a step is applied: what is resident, the averaged gradient, the next
    version's parameters as far as they are there, and the temporaries of the one that is made.
    """
    model = run.model
    words, matrix = float(model.vocabulary * model.hidden), float(model.hidden * max(model.ffn, model.hidden))
    every, first = float(stage_parameters(model, stage)), words if stage == 0 else 0.0
    last = words if stage == model.stages - 1 else 0.0
    temporaries = TEMPORARIES_8BIT if run.optimizer.name.endswith("8bit") else TEMPORARIES
    made = max(first + temporaries * first, every - last + temporaries * matrix, every + temporaries * last)
    digest = every + 4 * min(every, DIGEST_ELEMENTS)
    return resident_bytes(run, stage) + FP32 * (every + max(made, digest))


def needed_bytes(run: RunConfig, stage: int, width: int = HALF, *, fused: bool = True) -> float:
    """The least that a stage takes of its device: no graph is kept, and none of a context or of what is fragmented."""
    return max(computing_bytes(run, stage, width, fused=fused), stepping_bytes(run, stage))


def _scores(run: RunConfig) -> float:
    """Attention's scores of a microbatch in one block."""
    return float(run.sequences_per_microbatch * run.model.heads * run.model.sequence_length**2)


def lacking(run: RunConfig, stage: int, memory_bytes: float) -> str:
    """Why a device can't hold a stage, in a sentence; "" if it may. `memory_bytes`: that it has; 0: unknown."""
    need = needed_bytes(run, stage)
    if 0 < memory_bytes < need:
        return f"stage {stage} takes {need / 1e9:.1f} GB at least, and this device has {memory_bytes / 1e9:.1f} GB"
    return ""


def unfit(run: RunConfig, memory_bytes: float, wanted: int | None = None) -> str:
    """Why a device can take no part in a run, in a sentence; "" if it may. `wanted`: the only stage that it would
    serve. `memory_bytes`: that it has; 0: unknown.
    """
    last = run.model.stages - 1
    stages = (0, min(1, last), last) if wanted is None else (wanted,)  # those between are equal
    need = min(needed_bytes(run, stage) for stage in stages)
    if not 0 < memory_bytes < need:
        return ""
    which = f"stage {wanted}" if wanted is not None else "the smallest stage"
    takes = f"{which} of run {run.name} takes {need / 1e9:,.1f} GB at least"
    return f"{takes}, and this device has {memory_bytes / 1e9:,.1f} GB"
