"""One stage of a run on one device: the whole Compute port, without threads or event loop of its own.

Forward keeps its autograd graphs until the gradient comes back, or less where memory is short; backward adds the
parameters' gradients to the step's sum, at most once per hop; a round's result becomes the next version. All methods
must be called from one thread, except `attempt` and `forget`. Gradients come from strangers, so their shapes are
checked (`PeerFault`). Whatever isn't finite, or would not be on the wire, is refused where it arises (`NonFinite`); but
a hop that isn't finite in this node's narrower numerics alone is computed again in wider ones (`numerics.py`).

Knows nothing of peers, leases or rounds. Shapes: B sequences of a microbatch, T tokens, D hidden width.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from swarmd.config import ComputeConfig, RunConfig
from swarmd.errors import UNNAMED, NonFinite, PeerFault
from swarmd.stage import transfer
from swarmd.stage.codec import available_codecs, decode, encode, is_surely_finite
from swarmd.stage.device import check_device
from swarmd.stage.finite import Checks, all_finite
from swarmd.stage.gradients import GradientSum, add_up, parameter_digest
from swarmd.stage.graphs import Forward, Graphs, plan_keeping, plan_limit
from swarmd.stage.inputs import Inputs, Source
from swarmd.stage.loss import Loss, chunked_loss
from swarmd.stage.model import build_stage
from swarmd.stage.numerics import DTYPES, LADDER, Numerics, choose_dtype
from swarmd.stage.optimizer import Optimizer
from swarmd.stage.passage import Passage, pass_through
from swarmd.stage.state import OPTIMIZER_PREFIX, PARAMETER_PREFIX, read_count, read_state, write_state
from swarmd.values import BackwardResult, Buffer, Encoded, GradientSummary, HopId, TailResult

Result = TypeVar("Result")
Formed = tuple[list[Tensor], Encoded | None]
"""A hop's gradients, in the order of the parameters, and that of its input as it travels; None at the first stage."""


class StageEngine:
    """Computes stage `stage` of `run` on `device`, from version 0 or from an imported state.

    With `trains` False it has no memory for a sum and an optimizer: gradients are computed, and added to nothing.
    """

    def __init__(
        self,
        run: RunConfig,
        stage: int,
        device: str = "cpu",
        compute: ComputeConfig | None = None,
        *,
        trains: bool = True,
    ) -> None:
        self.run, self.stage, self.device = run, stage, check_device(device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # of this thread
        self.module = build_stage(run.model, stage, run.seed, self.device)
        self.parameters: tuple[nn.Parameter, ...] = tuple(self.module.named().values())
        stepped = {name: value if trains else value.to("meta") for name, value in self.module.named().items()}
        self.optimizer = Optimizer(run.optimizer, stepped)
        self.sum = GradientSum(tuple(stepped.values()))
        self.sum.frozen = not trains
        self.version = 0
        self._broken = False  # moments are of a step whose parameters were refused
        self.inputs = Inputs(run, self.device, is_head=self.module.is_head)
        compute = compute or ComputeConfig()
        self.ladder = LADDER[choose_dtype(run, self.device, compute.dtype)]
        self.keeping = plan_keeping(run, compute.recompute, self.ladder[0].dtype)
        self.graphs = Graphs(plan_limit(self.device))
        self.hops = 0  # forwards, backwards and tails that were computed
        self.repeats = 0  # of them, since their numbers weren't finite in this node's numerics

    @property
    def gradient_size(self) -> int:
        """Elements of the flattened gradient."""
        return self.sum.size

    @property
    def codecs(self) -> tuple[str, ...]:
        return available_codecs()

    def probe(self) -> None:
        """Waits until the device has done all its work. Raises RuntimeError if it is lost."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @property
    def dtype(self) -> str:
        """The dtype of products, as the node's settings name it."""
        return next(name for name, dtype in DTYPES.items() if dtype is self.ladder[0].dtype)

    # --------------------------------------------------------------------------------------------- hops

    @property
    def kept(self) -> set[HopId]:
        """The hops whose forward ran and whose gradient hasn't come."""
        return self.graphs.hops()

    def attempt(self, hop: HopId) -> int:
        """The number of times that the hop was forgotten, to be given with work on it. From any thread."""
        return self.graphs.attempt(hop)

    def forget(self, hop: HopId) -> None:
        """Drops what is kept for a hop; a task of it that runs or waits will not be accumulated. From any thread."""
        self.graphs.forget(hop)

    def forward(
        self,
        hop: HopId,
        tokens: Buffer,
        activation: Encoded | None,
        *,
        codec: str,
        evaluate: bool = False,
        attempt: int | None = None,
    ) -> Encoded:
        """Runs the stage, which is not the last, and keeps what backward needs unless `evaluate`."""
        assert not self.module.is_tail, "the last stage has `tail`"
        attempt = 0 if evaluate else self.graphs.begin(hop, attempt)
        source = Source(tokens, activation)

        def run(numerics: Numerics) -> tuple[Encoded, Forward]:
            checks = Checks()
            inputs, _ = self.inputs.check(hop, source, checks)
            first = numerics is self.ladder[0]
            kind, nbytes = self.keeping.plan(self.graphs.room) if first and not evaluate else ("source", 0)
            passage, output = None, None
            if kind == "source":
                output = self._run(inputs, numerics)
            else:
                passage, output = pass_through(self.module, inputs, numerics, graphs=kind == "graphs")
            encoded = _outgoing(output, codec, hop, "activation", checks)
            return encoded, Forward(source, output.shape, numerics, passage, nbytes)

        encoded, forward = self._in_turn(run, [it for it in self.ladder if it.less_bits == 0])
        if not evaluate:
            self.graphs.keep(hop, attempt, forward)
        return encoded

    def backward(
        self, hop: HopId, gradient: Encoded, *, codec: str, attempt: int | None = None, subtract: bool = False
    ) -> BackwardResult:
        """Backward of a kept forward; adds its share to the step's sum, or takes it out, unless that is frozen."""
        attempt = self.graphs.begin(hop, attempt)
        incoming = decode(gradient, self.device)
        shape = self.graphs.shape(hop)
        if incoming.shape != shape:
            raise PeerFault(f"a gradient of shape {tuple(incoming.shape)} came for {tuple(shape)}")
        if not is_surely_finite(gradient) and not all_finite((incoming,)):
            raise NonFinite(f"the gradient of hop {tuple(hop)} came with an infinity or NaN", "gradient", 0)
        forward = self.graphs.take(hop, attempt)

        def run(numerics: Numerics) -> Formed:
            passage = forward.passage if numerics == forward.numerics else None
            if passage is None:
                passage, _ = self._pass(self.inputs.load(forward.source)[0], numerics)
            return self._checked(hop, *passage.backward(incoming), codec, Checks())

        gradients, outgoing = self._in_turn(run, self.ladder[self.ladder.index(forward.numerics) :])
        return BackwardResult(outgoing, self._count(hop, attempt, gradients, subtract=subtract))

    def tail(
        self,
        hop: HopId,
        tokens: Buffer,
        activation: Encoded | None,
        *,
        codec: str,
        evaluate: bool = False,
        attempt: int | None = None,
        subtract: bool = False,
    ) -> TailResult:
        """Forward, loss and backward of the last stage."""
        assert self.module.is_tail, "only the last stage computes the loss"
        attempt = 0 if evaluate else self.graphs.begin(hop, attempt)
        source = Source(tokens, activation)

        def run(numerics: Numerics) -> tuple[float, int, Formed | None]:
            checks = Checks()
            inputs, targets = self.inputs.check(hop, source, checks)
            if evaluate:
                _, place = self._loss(hop, self._run(inputs, numerics), targets, numerics, checks, gradients=False)
                checks.settle()
                return checks.values[place], targets.numel(), None
            passage, hidden = self._pass(inputs, numerics)
            loss, place = self._loss(hop, hidden, targets, numerics, checks, gradients=True)
            assert loss.hidden is not None
            assert loss.weight is not None
            gradients, back = passage.backward(loss.hidden.view_as(hidden))
            gradients[self.module.unembedding()] = loss.weight
            formed = self._checked(hop, gradients, back, codec, checks)
            return checks.values[place], targets.numel(), formed

        value, count, formed = self._in_turn(run, self.ladder)
        if formed is None:
            return TailResult(value, count, None, accumulated=False)
        gradients, outgoing = formed
        return TailResult(value, count, outgoing, self._count(hop, attempt, gradients, subtract=subtract))

    def _in_turn(self, run: Callable[[Numerics], Result], numerics: Sequence[Numerics]) -> Result:
        """Computes in the first of these numerics in which all is finite. Raises NonFinite if it is so in none, or if
        it came so.
        """
        self.hops += 1
        for each in numerics[:-1]:
            try:
                return run(each)
            except NonFinite as trouble:
                if trouble.source is not None:
                    raise
            self.repeats += 1
        return run(numerics[-1])

    def _run(self, inputs: Tensor, numerics: Numerics) -> Tensor:
        """The stage's forward, of which nothing is kept."""
        with torch.no_grad(), numerics.autocast(self.device):
            return self.module.hidden(inputs)

    def _pass(self, inputs: Tensor, numerics: Numerics) -> tuple[Passage, Tensor]:
        """The stage's forward, whose backward comes next."""
        return pass_through(self.module, inputs, numerics, graphs=self.keeping.whole(self.graphs.limit))

    def _loss(
        self, hop: HopId, hidden: Tensor, targets: Tensor, numerics: Numerics, checks: Checks, *, gradients: bool
    ) -> tuple[Loss, int]:
        """The loss, with its gradients if they are asked for, and the place of its nats among those of `checks`."""
        weight = self.module.unembedding().detach().to(numerics.dtype)
        scale = numerics.loss_scale
        loss = chunked_loss(hidden.flatten(0, 1), weight, targets.flatten(), gradients=gradients, scale=scale)
        trouble = NonFinite(f"the loss of hop {tuple(hop)} is infinite or NaN", "loss")
        return loss, checks.at_most(loss.nats.float(), trouble)

    def _checked(
        self, hop: HopId, gradients: dict[nn.Parameter, Tensor], back: Tensor | None, codec: str, checks: Checks
    ) -> Formed:
        """The gradients in the order of the parameters, and the input's as it travels. Settles `checks`. Raises
        NonFinite.
        """
        formed = [gradients[parameter] for parameter in self.parameters]
        trouble = NonFinite(f"the gradients of hop {tuple(hop)} have an infinity or NaN", "gradient")
        checks.finite(formed if back is None else [*formed, back], trouble)
        if back is None:
            checks.settle()
            return formed, None
        return formed, _outgoing(back, codec, hop, "gradient", checks)

    def _count(self, hop: HopId, attempt: int, gradients: Sequence[Tensor], *, subtract: bool) -> bool:
        """Adds the gradients to the sum, or takes them out, unless they are or the sum is frozen. True if they are in
        it now. Raises HopForgotten.
        """
        with self.graphs.unforgotten(hop, attempt):
            changes = not self.sum.frozen and (hop in self.sum.counted) == subtract
            if changes:
                self.sum.counted ^= {hop}
            counted = hop in self.sum.counted
        if changes:
            self.sum.add(gradients, sign=-1 if subtract else 1)
        return counted

    # --------------------------------------------------------------------------------------------- rounds

    def freeze(self, step: int) -> None:
        """Freezes the step's sum: nothing is accumulated any more."""
        self._require(step)
        self.sum.frozen = True

    def thaw(self, step: int) -> None:
        """Undoes `freeze`."""
        self._require(step)
        self.sum.frozen = False

    def absorb(self, step: int, indices: Sequence[int], slices: Sequence[Encoded]) -> bool:
        """Adds another replica's whole sum, and what is counted in it. False if that can't be: this sum is frozen, or
        has one of the indices.
        """
        self._require(step)
        pieces = self.sum.decode(slices)  # all of them first: nothing may fail half-way
        hops = {HopId(step, index) for index in indices}
        if self.sum.frozen or hops & self.sum.counted:
            return False
        self.sum.counted |= hops
        self.sum.absorb(pieces)
        return True

    def contribution(self, step: int, start: int, stop: int, *, codec: str) -> Encoded:
        """Elements [start, stop) of the step's sum, in memory of their own. Raises NonFinite: gradients may be finite
        and their sum not.
        """
        self._require(step)
        assert 0 <= start <= stop <= self.sum.size, f"part {start} to {stop} of {self.sum.size}"
        part = self.sum.flat[start:stop]
        return _outgoing(part.clone() if codec == "fp32" else part, codec, step, "sum")

    def reduce(self, contributions: Sequence[Encoded], tokens: int, *, codec: str) -> Encoded:
        """Adds contributions to a part in the given order, divides by the tokens. Raises PeerFault, NonFinite."""
        assert tokens > 0, "a part is of some tokens"
        checks = Checks()
        total = add_up(contributions, self.device, checks)
        return _outgoing(total.div_(tokens), codec, self.version + 1, "average", checks)

    def assemble(self, step: int, parts: Sequence[Encoded]) -> GradientSummary:
        """Puts the averaged parts together as the gradient that `apply` uses."""
        self._require(step)
        return self.sum.assemble(parts)

    def apply(self, step: int, *, learning_rate: float, clip_factor: float) -> str:
        """Optimizer step with the assembled gradient; ends the step. Returns the parameters' digest.

        Raises NonFinite if parameters or moments would not be finite: the parameters stay, but moments have changed, so
        nothing of this state is given out until another one is imported.
        """
        self._require(step)
        averaged = self.sum.averaged
        assert averaged is not None, f"step {step} is applied before its gradient was assembled"
        values = self.optimizer.step(
            self.parameters, self.sum.cut(averaged), learning_rate=learning_rate, scale=clip_factor
        )
        if not all_finite([*values, *self.optimizer.numbers()]):
            self._broken = True
            raise NonFinite(f"the parameters after step {step} would have an infinity or NaN", "parameters")
        self._replace(values)
        self._end(step)
        return self.digest()

    def skip(self, step: int) -> str:
        """Ends the step without changing anything else. Returns the parameters' digest."""
        self._require(step)
        self._end(step)
        return self.digest()

    def digest(self) -> str:
        return parameter_digest(self.parameters)

    def _require(self, step: int) -> None:
        if step != self.version + 1:
            raise KeyError(f"step {step} is not being summed: this stage is at version {self.version}")

    def _replace(self, values: Sequence[Tensor]) -> None:
        """Puts new parameters in the place of the old, which graphs in flight go on using."""
        for name, value in zip(self.optimizer.names, values, strict=True):
            owner, _, leaf = name.rpartition(".")
            setattr(self.module.get_submodule(owner), leaf, nn.Parameter(value))
        self.parameters = tuple(self.module.named().values())

    def _end(self, version: int) -> None:
        """The stage is at `version` now: a new sum, and nothing left of the steps up to it."""
        self.version = version
        self.graphs.end(version)
        self.sum.restart()

    # --------------------------------------------------------------------------------------------- state

    def export_state(self) -> Buffer:
        """Version, parameters and optimizer as safetensors. Raises NonFinite after a step that was refused."""
        if self._broken:
            raise NonFinite(f"version {self.version} is spoiled by a step that was refused", "parameters")
        return write_state(self._state())

    def import_state(self, state: Buffer) -> str:
        """Goes on from an exported state; leaves everything as it was if that doesn't fit (ValueError)."""
        own = self._state()
        version, tensors = read_state(state, own)

        def value(name: str) -> Tensor:
            return transfer.upload(tensors[name], own[name].dtype, self.device).view(own[name].shape)

        self._replace([value(PARAMETER_PREFIX + name).clone() for name in self.optimizer.names])
        self.optimizer.load(read_count(tensors[f"{OPTIMIZER_PREFIX}updates"]), lambda it: value(OPTIMIZER_PREFIX + it))
        self._broken = False
        self._end(version)
        return self.digest()

    def _state(self) -> dict[str, Tensor]:
        state = {"version": torch.tensor(self.version, dtype=torch.int64)}
        state.update({PARAMETER_PREFIX + name: value.detach() for name, value in self.module.named().items()})
        state.update({OPTIMIZER_PREFIX + name: value for name, value in self.optimizer.tensors().items()})
        return state


def _outgoing(tensor: Tensor, codec: str, of: HopId | int, what: str, checks: Checks | None = None) -> Encoded:
    """A tensor as it travels, when `checks` are settled. Raises NonFinite, which says of which hop or step it is."""
    try:
        return encode(tensor, codec, checks)
    except NonFinite as trouble:
        if trouble.what != UNNAMED:
            raise
        whose = f"step {of}" if isinstance(of, int) else f"hop {tuple(of)}"
        raise NonFinite(f"the {what} of {whose} can't be sent: {trouble}", what) from None
