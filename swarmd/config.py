"""The settings of a run and of a node, as plain frozen data.

A *run* is what all its peers must agree on: it is fingerprinted, and sent to peers that join. A *node* is one daemon's
own affair. What a setting may be is declared beside it; TOML is read, and all of it checked, in `settings.py`.
This file imports next to nothing, so that every room may use it.
"""

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from swarmd.constraints import Items, Range, Text

SIZE_LIMIT = 1 << 20  # of any one dimension; keeps a stranger's settings from asking for absurd allocations
LAYERS_LIMIT = 1 << 14  # a hundred times those of the deepest models; each is objects of Python in every peer
STAGES_LIMIT = 1 << 12  # everyone counts over all of them again and again
COUNT_LIMIT = 1 << 40  # steps, seeds and sequences fit an exact float and an int64 product
RATE_LIMIT = 1e30  # of learning; more, times the decay, is no number of fp32
NORM_LIMIT = 1e300  # a finite number
THREADS_LIMIT = 1 << 12  # more than any machine has cores
BYTES_LIMIT = 1 << 60  # a million disks; twice as many are still an int64
SECONDS_LIMIT = 1e9  # thirty years: a finite number
EARLIER_LIMIT = 64  # times that a run is prolonged; the fingerprint of each is worked out wherever somebody joins
PATH_CHARACTERS = 4096  # of Linux
DIGEST = re.compile("[0-9a-f]{32}")  # blake2b of 16 bytes

Size = Annotated[int, Range(ge=1, le=SIZE_LIMIT)]
Steps = Annotated[int, Range(ge=1, le=COUNT_LIMIT)]
Bytes = Annotated[int, Range(ge=0, le=BYTES_LIMIT)]
Kept = Annotated[int, Range(ge=1, le=SIZE_LIMIT)]
"""Things that a peer holds at a time, of which it needs one."""
Seconds = Annotated[float, Range(ge=0, le=SECONDS_LIMIT)]
Interval = Annotated[float, Range(ge=0.1, le=SECONDS_LIMIT)]
"""Seconds for which something is to be done: less is nothing."""
Place = Annotated[
    str,
    Text(1, PATH_CHARACTERS, lambda text: "\0" not in text, f"1 to {PATH_CHARACTERS} characters, none of them zero"),
]
"""A path, or what is said in its place."""
Beta = Annotated[float, Range(ge=0, lt=1)]
Digest = Annotated[
    str, Text(0, 32, lambda text: not text or bool(DIGEST.fullmatch(text)), "32 hexadecimal digits, or empty")
]

CodecName = Literal["fp32", "fp16", "bf16", "int8", "int8-bnb"]
"""Codecs of tensors on the wire. `int8`: absmax over blocks; `int8-bnb`: bitsandbytes' blockwise dynamic code (needs
the extra `bnb`).
"""

RoutingPolicy = Literal["iwrr", "weighted", "p2c"]
"""Policies by which a peer chooses among the next stage's: interleaved weighted round robin, a weighted draw, the
better of two (`swarm/hops/routing.py`).
"""


LOCAL = "local"
"""In a run's settings, where its founder's own files are meant: they are known by their digests."""

HUB_NAME = re.compile("hf:{0}/{0}(:{0})?".format("[A-Za-z0-9][A-Za-z0-9._-]{0,95}"))
"""A dataset of the Hugging Face Hub with its owner, and perhaps a subset: nothing that could be a path or a URL."""


@dataclass(frozen=True)
class ModelConfig:
    """A Llama-style decoder, cut into `stages` slices of `layers // stages` block applications each."""

    vocabulary: Annotated[int, Range(ge=2, le=SIZE_LIMIT)]
    hidden: Size
    ffn: Size
    heads: Size
    layers: Annotated[int, Range(ge=1, le=LAYERS_LIMIT)]  # block applications in the whole model
    stages: Annotated[int, Range(ge=1, le=STAGES_LIMIT)]
    sequence_length: Size  # tokens the model sees; a sample holds one more, for the last target
    shared: bool = False  # one block per stage, applied layers // stages times (ALBERT-style sharing inside a stage)
    rope_theta: Annotated[float, Range(gt=1, lt=1e12, hint="usually 10000.0")] = 10_000.0
    norm_eps: Annotated[float, Range(gt=0, lt=1, hint="usually 1e-5")] = 1e-5
    init_std: Annotated[float, Range(gt=0, lt=10, hint="usually 0.02")] = 0.02
    compute_dtype: Literal["fp32", "bf16"] = "fp32"  # decides nothing any more: it is each node's own, and `precision`


@dataclass(frozen=True)
class DataConfig:
    """The text that the heads train on. Part of the run: index -> sequences must be the same function everywhere."""

    source: Place = "stdlib"  # stdlib | hf:OWNER/NAME[:SUBSET] | path to text file(s), directory, *.jsonl, *.parquet
    tokenizer: Place = "byte"  # byte | path to a Hugging Face tokenizer.json
    text_field: Place = "text"  # the field of JSONL, Parquet and hf: rows that holds the text
    held_out: Annotated[float, Range(ge=0, lt=1)] = 0.01  # fraction of the sequences kept for validation
    tokens_digest: Digest = ""  # source = "local": what the founder's own files gave; paths don't travel
    tokenizer_digest: Digest = ""  # tokenizer = "local": of the founder's own file

    @property
    def has_open_source(self) -> bool:
        """True if every machine may read the source, even if a peer named it; else only its user can say where."""
        return self.source == "stdlib" or (HUB_NAME.fullmatch(self.source) is not None and ".." not in self.source)

    @property
    def has_open_tokenizer(self) -> bool:
        """The same of the tokenizer."""
        return self.tokenizer == "byte"


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer that makes the next version."""

    name: Literal["adamw", "lamb", "adamw8bit", "lamb8bit"] = "adamw"
    learning_rate: Annotated[float, Range(gt=0, le=RATE_LIMIT)] = 3e-4
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: Annotated[float, Range(gt=0, lt=1, hint="usually 1e-8")] = 1e-8
    weight_decay: Annotated[float, Range(ge=0, lt=10)] = 0.01
    # Of the whole model's averaged gradient.
    clip_norm: Annotated[float, Range(ge=0, le=NORM_LIMIT, hint="0 turns clipping off")] = 1.0
    warmup_steps: Annotated[int, Range(ge=0, le=COUNT_LIMIT)] = 0
    decay: Literal["constant", "linear", "cosine"] = "linear"
    final_fraction: Annotated[float, Range(ge=0, le=1)] = 0.0  # of the learning rate, at the last step


@dataclass(frozen=True)
class CodecConfig:
    """The codec of each kind of tensor on the wire, when both ends have it (else fp16)."""

    activations: CodecName = "int8"
    gradients: CodecName = "int8"
    averaging: CodecName = "fp16"


@dataclass(frozen=True)
class RunConfig:
    """Everything the peers of a run agree on."""

    name: Annotated[str, Text(1, 64, str.isprintable, "1 to 64 printable characters")]
    model: ModelConfig
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    codecs: CodecConfig = field(default_factory=CodecConfig)
    steps: Steps = 1_000
    sequences_per_step: Size = 64  # the global batch
    sequences_per_microbatch: Size = 4
    seed: Annotated[int, Range(ge=0, lt=COUNT_LIMIT)] = 0
    # In steps.
    validate_every: Annotated[int, Range(ge=0, le=COUNT_LIMIT, hint="0 turns validation off")] = 20
    validation_microbatches: Annotated[int, Range(ge=0, le=COUNT_LIMIT)] = 4
    checkpoint_every: Steps = 100  # steps; the last version is always kept
    # Between two looks, by each peer, if it should serve another stage.
    rebalance_seconds: Annotated[float, Range(ge=0, le=SIZE_LIMIT, hint="0: never")] = 300.0
    routing: RoutingPolicy = "iwrr"  # the best of the three in docs/simulator.md, "Routing"
    recompute: bool | Literal["auto"] = "auto"  # where a node doesn't say; see `ComputeConfig`
    # Steps skipped in a row, as their numbers weren't finite, after which the run ends. Far more than chance makes of
    # sound training, and soon enough that nobody trains a diverged model for days.
    skips_limit: Annotated[int, Range(ge=0, le=COUNT_LIMIT, hint="0 never ends the run")] = 50
    earlier: Annotated[
        tuple[Steps, ...], Items(EARLIER_LIMIT, "totals of steps, each at least 1; a run can't be prolonged more often")
    ] = ()  # `steps` before it was prolonged, and before that, the first total first
    # Of every node's matrix products: "any" is what is fast on its device. Parameters, sums and moments are fp32.
    precision: Literal["any", "fp32"] = "any"

    @property
    def totals(self) -> tuple[int, ...]:
        """Every number of steps that the run has had, the present one last."""
        return (*self.earlier, self.steps)

    @property
    def microbatches(self) -> int:
        """M: a step's indices are 0 .. M-1."""
        return self.sequences_per_step // self.sequences_per_microbatch

    @property
    def tokens_per_microbatch(self) -> int:
        return self.sequences_per_microbatch * self.model.sequence_length


@dataclass(frozen=True)
class LimitsConfig:
    """Bounds of one node, each named. The defaults suit 16 GB of memory."""

    in_flight_bytes: Bytes = 2 << 30  # activations of admitted hops, graphs not counted
    in_flight_hops: Kept = 64
    retained_bytes: Bytes = 4 << 30  # activations and gradients kept until the commit
    frame_bytes: Annotated[int, Range(ge=1 << 20, le=BYTES_LIMIT)] = 256 << 20  # largest message accepted from a peer
    held_gradients: Kept = 4  # committed averaged gradients kept for those who come late
    backlog_bytes: Bytes = 4 << 30  # gradients committed while this peer pulls its stage's state
    fork_timeout_s: Seconds = 30.0  # without a majority of a step's acceptors, though every stage is there, until a
    # conductor goes on alone
    stage_lost_timeout_s: Seconds = 60.0  # without a peer at a stage, until the swarm returns to what is on disks of it
    final_copies_timeout_s: Seconds = 60.0  # at the end of a run, until every stage's final state is on two machines
    stream_bytes: Bytes = 256 << 30  # of a dataset's tokens on this disk; those of the largest preset take 252 GB
    copies_bytes: Bytes = 64 << 30  # of other stages' checkpoints on this peer's disk
    move_wait_s: Seconds = 15.0  # a peer that goes to another stage waits so long for the end of a step; if that is
    # further away, it hands what it has of the step to another replica


ComputeDtype = Literal["auto", "fp32", "bf16", "fp16"]
Recompute = Literal["auto", "never", "block", "always"]


@dataclass(frozen=True)
class ComputeConfig:
    """A node's way to compute. Peers need not agree on it: what they exchange is in the run's codecs."""

    # Of the matrix products. "auto": bf16 on GPUs with units for it (Ampere and later), fp16 on those before (Volta,
    # Turing), fp32 on CPUs. A run may demand fp32.
    dtype: ComputeDtype = "auto"
    # Backward runs the forward again instead of keeping its graphs: never, the whole of it (always), or one block after
    # another. "auto": where memory is short, by blocks if the graphs of one microbatch don't fit.
    recompute: Recompute = "auto"


@dataclass(frozen=True)
class NodeConfig:
    """One daemon's own settings."""

    home: str
    device: str = "cpu"
    listen: tuple[str, ...] = ()  # none: all interfaces, at port 4001 or the next free one, which the home keeps
    announce: tuple[str, ...] = ()  # where others can dial it, if not where it listens: behind NAT or a proxy
    bootstrap: tuple[str, ...] = ()
    stage: Annotated[int, Range(ge=0, lt=STAGES_LIMIT)] | None = None  # None: the stage that needs it most
    data: str | None = None  # this node's copy of the run's data, when it is elsewhere or the run doesn't say where
    tokenizer: str | None = None  # ... and of its tokenizer.json
    mdns: bool = False
    threads: Annotated[int, Range(ge=0, le=THREADS_LIMIT)] = 0  # of torch on the CPU; 0: torch's own choice
    drain_s: Interval = 60.0  # bound on a drain: a step's microbatches under way and the sum over a home line fit in it
    spot_file: str | None = None  # this machine is about to be taken away once it exists
    spot_command: str | None = None  # ... or once this line of shell succeeds
    spot_interval_s: Interval = 5.0  # between two looks: the shortest notice of the large clouds is 30 s
    spot_notice_s: Seconds = 30.0  # from the notice to the end: what is more than a drain takes is worked through
    found_after_s: Seconds = (
        60.0  # others of a run that this home knows are looked for so long before it is founded again
    )
    wait_s: Seconds | None = None  # for a run to be found; None: as long as it takes
    # Host and port that serve figures by HTTP; None: the control socket alone does.
    metrics: tuple[str, Annotated[int, Range(ge=0, le=65535)]] | None = None
    service: bool = False  # nobody is there to start it again: it waits also where only a person can help
    resume: bool = False  # a run that this node founds goes on from what is on its peers' disks
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)

    @property
    def grace_s(self) -> float:
        """Seconds for which it works on after a notice, which it may hear of late."""
        return max(0.0, self.spot_notice_s - self.spot_interval_s - self.drain_s)


def to_plain(config: Any) -> dict[str, Any]:
    """The settings as JSON-ready data, tuples as lists."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


FOUNDING = frozenset(
    {
        "name",
        "steps",
        "sequences_per_step",
        "sequences_per_microbatch",
        "seed",
        "validate_every",
        "validation_microbatches",
        "checkpoint_every",
        "rebalance_seconds",
        "routing",
        "recompute",
        "model.vocabulary",
        "model.hidden",
        "model.ffn",
        "model.heads",
        "model.layers",
        "model.stages",
        "model.sequence_length",
        "model.shared",
        "model.rope_theta",
        "model.norm_eps",
        "model.init_std",
        "model.compute_dtype",
        "data.source",
        "data.tokenizer",
        "data.text_field",
        "data.held_out",
        "optimizer.name",
        "optimizer.learning_rate",
        "optimizer.betas",
        "optimizer.eps",
        "optimizer.weight_decay",
        "optimizer.clip_norm",
        "optimizer.warmup_steps",
        "optimizer.decay",
        "optimizer.final_fraction",
        "codecs.activations",
        "codecs.gradients",
        "codecs.averaging",
    }
)
"""The settings of a run that the first release had, by their path. They are in the fingerprint of every run, for ever:
nothing is added here.
"""


def fingerprint(run: RunConfig) -> str:
    """16 hex digits that differ whenever two runs' settings do. Peers with different ones refuse each other.

    A setting that came after the first release counts only where it isn't its default, so that a home of an older
    release keeps its name.
    """
    canonical = json.dumps(_fingerprinted(run), sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()


def _fingerprinted(table: Any, path: str = "") -> dict[str, Any]:
    """The settings of a run, or of one of its tables, that are in the fingerprint."""
    plain, taken = to_plain(table), dict[str, Any]()
    for it in dataclasses.fields(table):
        value = getattr(table, it.name)
        if dataclasses.is_dataclass(value):
            inner = _fingerprinted(value, f"{path}{it.name}.")
            if inner:  # a later table may have nothing but defaults
                taken[it.name] = inner
        elif path + it.name in FOUNDING or value != _default(it):
            taken[it.name] = plain[it.name]
    return taken


def _default(it: "dataclasses.Field[Any]") -> Any:
    return it.default_factory() if it.default_factory is not dataclasses.MISSING else it.default


def prolonged(run: RunConfig, steps: int) -> RunConfig:
    """The same run with another total of steps: what was committed under the present one stays as it is."""
    return run if steps == run.steps else dataclasses.replace(run, steps=steps, earlier=run.totals)


def lineage(run: RunConfig) -> tuple[str, ...]:
    """The run's fingerprints: as it was founded, after each time that it was prolonged, and last the present one."""
    totals = run.totals
    forms = (dataclasses.replace(run, steps=steps, earlier=totals[:place]) for place, steps in enumerate(totals))
    return tuple(map(fingerprint, forms))
