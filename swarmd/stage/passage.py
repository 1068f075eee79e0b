"""A microbatch's way through a stage, segment by segment, and the way back of its gradient.

A segment lies between two points of the residual stream: the embedding, an application of a block, the final norm.
Each has a graph of its own, which begins at its input. So backward needs one segment's graph at a time, and makes
those again that weren't kept. Gradients are formed and added in one order, whatever was kept: their bits are the same.
They are added in fp32, those of a block that is applied again and again, too. Shapes: B sequences, T tokens, D hidden
width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from swarmd.stage.model import StageModule
from swarmd.stage.numerics import Numerics


def pass_through(stage: StageModule, inputs: Tensor, numerics: Numerics, *, graphs: bool) -> tuple["Passage", Tensor]:
    """A stage's forward, and its output [B, T, D]. Keeps all graphs, or each segment's input only.

    inputs: [B, T] tokens or [B, T, D] activation.
    """
    segments, x = [], inputs
    with numerics.autocast(x.device):
        for module in stage.segments():
            leaf = x.detach()
            leaf.requires_grad_(leaf.is_floating_point())
            with torch.set_grad_enabled(graphs):
                out = stage.apply_segment(module, leaf)
            segments.append(Segment(module, tuple(module.parameters()), leaf, out if graphs else None))
            x = out.detach()
    return Passage(stage, segments, numerics), x


@dataclass(frozen=True)
class Segment:
    """One segment's forward."""

    module: nn.Module
    parameters: tuple[nn.Parameter, ...]  # with which it ran
    input: Tensor  # a leaf
    output: Tensor | None  # with its graph; None: the segment runs again


class Passage:
    """A forward through all segments of a stage, until its gradient comes."""

    def __init__(self, stage: StageModule, segments: list[Segment], numerics: Numerics) -> None:
        self._stage, self._segments, self.numerics = stage, segments, numerics

    @property
    def has_graphs(self) -> bool:
        """True if nothing has to run again."""
        return all(segment.output is not None for segment in self._segments)

    def backward(self, gradient: Tensor) -> tuple[dict[nn.Parameter, Tensor], Tensor | None]:
        """The gradients of the parameters and of the input (None: it was tokens) for one of the output. Uses the
        passage up: each segment is let go of once it is passed.
        """
        scale = self.numerics.scale(gradient, gradient.shape[:-1].numel())
        incoming: Tensor | None = gradient if scale is None else gradient * scale
        parameters = list(dict.fromkeys(it for segment in self._segments for it in segment.parameters))
        try:
            while self._segments:
                assert incoming is not None, "tokens enter the first segment"
                incoming = self._back(self._segments.pop(), incoming)
            totals = {it: it.grad for it in parameters if it.grad is not None}
        finally:
            for parameter in parameters:
                parameter.grad = None
        if scale is not None:
            torch._foreach_div_([*totals.values(), *([] if incoming is None else [incoming])], scale)
        return totals, incoming

    def _back(self, segment: Segment, incoming: Tensor) -> Tensor | None:
        """Adds the gradients of a segment's parameters to their `grad`, each as soon as it is formed: those of a shared
        block don't exist twice. Gives that of the segment's input.
        """
        torch.autograd.backward(self._outcome(segment), incoming, inputs=_wanted(segment))
        gradient, segment.input.grad = segment.input.grad, None
        return gradient

    def _outcome(self, segment: Segment) -> Tensor:
        """The segment's output with its graph, of its own forward or of another one now."""
        if segment.output is not None:
            return segment.output
        assert segment.parameters == tuple(segment.module.parameters()), "a step changes no version midway"
        with self.numerics.autocast(segment.input.device), torch.enable_grad():
            return self._stage.apply_segment(segment.module, segment.input)


def _wanted(segment: Segment) -> Sequence[Tensor]:
    """The tensors whose gradients are formed: tokens have none."""
    return (*segment.parameters, segment.input) if segment.input.requires_grad else segment.parameters
