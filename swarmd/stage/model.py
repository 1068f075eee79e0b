"""The model, and how it is cut into stages.

A Llama-style decoder: token embedding, blocks of causal attention with rotary positions and SwiGLU, RMSNorm before
each, an untied unembedding. `StageModule` is one stage's slice of it. Parameter names are those of the whole model
(`blocks.3.attention. query.weight`), however it is cut, and initial values depend on the run's seed and that name
only; so any cutting holds the same whole model, and a checkpoint can be cut again. The model doesn't know about
peers, hops or gradients.

Shapes: B sequences, T tokens, D hidden width, H heads, V vocabulary.
"""

import hashlib
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swarmd.config import ModelConfig

UNEMBEDDING = "head"
"""The module's name, and so its parameter's in states, and in what initial values are drawn from: a language model's
head, as the field calls it. The head of a swarm is its first stage.
"""


class Norm(nn.Module):
    """RMSNorm (Zhang and Sennrich 2019): no mean, no bias, one gain per channel."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.eps = model.norm_eps
        self.weight = nn.Parameter(torch.empty(model.hidden))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Attention(nn.Module):
    """Causal self-attention with rotary positions (Su et al. 2021)."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.heads = model.heads
        self.query = nn.Linear(model.hidden, model.hidden, bias=False)
        self.key = nn.Linear(model.hidden, model.hidden, bias=False)
        self.value = nn.Linear(model.hidden, model.hidden, bias=False)
        self.output = nn.Linear(model.hidden, model.hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        query = rotate(self._split(self.query(x)), cos, sin)
        key = rotate(self._split(self.key(x)), cos, sin)
        mixed = F.scaled_dot_product_attention(query, key, self._split(self.value(x)), is_causal=True)
        output: Tensor = self.output(mixed.transpose(1, 2).reshape(x.shape))
        return output

    def _split(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, H, T, D / H]."""
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020): one projection gates the other."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(model.hidden, model.ffn, bias=False)
        self.up = nn.Linear(model.hidden, model.ffn, bias=False)
        self.down = nn.Linear(model.ffn, model.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return output


class Block(nn.Module):
    """Attention, then feed-forward, each on the normed stream and added to it."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = Norm(model)
        self.attention = Attention(model)
        self.ffn_norm = Norm(model)
        self.ffn = FeedForward(model)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin)
        output: Tensor = x + self.ffn(self.ffn_norm(x))
        return output


class StageModule(nn.Module):
    """Stages `first` to `last` of the model as one module: the embedding if it begins, its blocks, the final norm and
    the unembedding if it ends.

    A peer holds one stage; the whole model is all of them in one (`whole_model`). With sharing each stage has one
    block, which is applied `layers // stages` times.

    On the meta device, arithmetic and random numbers load torch's compiler, which takes 1.1 s and 73 MiB. So the tables
    are computed on the CPU, and the embedding isn't given initial values.
    """

    def __init__(self, model: ModelConfig, first: int, last: int | None = None) -> None:
        super().__init__()
        last = first if last is None else last
        assert 0 <= first <= last < model.stages, f"stages {first} to {last} of {model.stages}"
        self.is_head, self.is_tail = first == 0, last == model.stages - 1
        if self.is_head:
            table = torch.empty(model.vocabulary, model.hidden)
            self.embedding = nn.Embedding.from_pretrained(table, freeze=False)  # type: ignore[no-untyped-call]
        self.plan = [key for stage in range(first, last + 1) for key in block_keys(model, stage)]
        self.blocks = nn.ModuleDict({key: Block(model) for key in dict.fromkeys(self.plan)})
        if self.is_tail:
            self.final_norm = Norm(model)
            self.add_module(UNEMBEDDING, nn.Linear(model.hidden, model.vocabulary, bias=False))
        with torch.device("cpu"):
            cos, sin = rotary_tables(model)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [B, T] at the head, else activations [B, T, D]; gives logits [B, T, V] at the tail, else
        activations.
        """
        x = self.hidden(x)
        return self.get_submodule(UNEMBEDDING)(x) if self.is_tail else x

    def hidden(self, x: Tensor) -> Tensor:
        """The same, but at the tail what is unembedded: [B, T, D] after the final norm."""
        for segment in self.segments():
            x = self.apply_segment(segment, x)
        return x

    def segments(self) -> list[nn.Module]:
        """The modules that `hidden` applies in turn: embedding, blocks, final norm, as far as the stage has them."""
        first, last = [self.embedding] if self.is_head else [], [self.final_norm] if self.is_tail else []
        return [*first, *(self.blocks[key] for key in self.plan), *last]

    def apply_segment(self, segment: nn.Module, x: Tensor) -> Tensor:
        """One of them on what the one before it gave."""
        if not isinstance(segment, Block):
            return segment(x)  # type: ignore[no-any-return]
        length = x.shape[1]
        return segment(x, self.get_buffer("cos")[:length], self.get_buffer("sin")[:length])  # type: ignore[no-any-return]

    def unembedding(self) -> nn.Parameter:
        """The tail's last parameter, [V, D]."""
        return self.get_parameter(f"{UNEMBEDDING}.weight")

    def named(self) -> dict[str, nn.Parameter]:
        """The parameters by their names in the whole model, in the order of the flattened gradient."""
        return dict(self.named_parameters())


def block_keys(model: ModelConfig, stage: int) -> list[str]:
    """The blocks a stage applies, in order: `3`, `4`, .. for its own layers, or `s1` again and again when shared."""
    count = model.layers // model.stages
    return [f"s{stage}"] * count if model.shared else [str(stage * count + layer) for layer in range(count)]


def whole_model(model: ModelConfig) -> StageModule:
    """All stages in one module, with the same names: the reference that a swarm must equal, and what a checkpoint
    exports to.
    """
    return StageModule(model, 0, model.stages - 1)


def loss_sum(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy in nats, summed over target tokens. logits [B, T, V], targets [B, T]. The reference for
    `loss.chunked_loss`.
    """
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")


def rotary_tables(model: ModelConfig) -> tuple[Tensor, Tensor]:
    """cos and sin of each position's angles, [sequence_length, D / H / 2] each, in fp64 first so that all devices
    agree.
    """
    half = model.hidden // model.heads // 2
    rates = model.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(model.sequence_length, dtype=torch.float64)[:, None] * rates
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns each pair (i, i + half) of a head's channels by its position's angle. x [B, H, T, D / H]."""
    left, right = x.chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, left * sin + right * cos), dim=-1)


@torch.no_grad()
def initialise(module: StageModule, model: ModelConfig, seed: int) -> None:
    """Fills every parameter from (seed, its name) alone: gains with 1, matrices uniformly with deviation `init_std`.

    Uniform rather than normal because it takes no transcendental function: the same bits on every CPU, and a third of
    the time. What writes into the residual stream is scaled by 1 / sqrt(2 * layers), as in GPT-2.
    """
    for name, parameter in module.named().items():
        if parameter.ndim == 1:
            parameter.fill_(1.0)
            continue
        residual = name.endswith(("attention.output.weight", "ffn.down.weight"))
        deviation = model.init_std / math.sqrt(2 * model.layers) if residual else model.init_std
        bound = deviation * math.sqrt(3.0)  # a uniform variable on [-b, b] has deviation b / sqrt(3)
        digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
        values = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
        parameter.copy_(values)


def build_stage(model: ModelConfig, stage: int, seed: int, device: str | torch.device = "cpu") -> StageModule:
    """One stage at version 0."""
    return _build(model, stage, stage, seed, device)


def build_whole(model: ModelConfig, seed: int, device: str | torch.device = "cpu") -> StageModule:
    """The whole model at version 0."""
    return _build(model, 0, model.stages - 1, seed, device)


def _build(model: ModelConfig, first: int, last: int, seed: int, device: str | torch.device) -> StageModule:
    with torch.device(
        "meta"
    ):  # no initial values of PyTorch's own, which would be drawn from global state and thrown away
        module = StageModule(model, first, last)
    module.to_empty(device=device)
    for name, table in zip(("cos", "sin"), rotary_tables(model), strict=True):
        module.get_buffer(name).copy_(table)
    initialise(module, model, seed)
    return module


def distinct_parameters(model: ModelConfig, first: int = 0, last: int | None = None) -> int:
    """Parameters that exist in stages `first` .. `last` (default: the whole model). Allocates nothing."""
    with torch.device("meta"):
        module = StageModule(model, first, model.stages - 1 if last is None else last)
    return sum(parameter.numel() for parameter in module.parameters())


def applied_parameters(model: ModelConfig) -> int:
    """Parameters of the whole model as a token meets them: a shared block counts as often as it is applied."""
    with torch.device("meta"):
        module = whole_model(model)
    every = sum(parameter.numel() for parameter in module.parameters())
    block = sum(parameter.numel() for parameter in next(iter(module.blocks.values())).parameters())
    return every + block * (model.layers - len(module.blocks))
