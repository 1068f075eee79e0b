"""One stage of a run on one device: the whole Compute port, without threads or event loop of its own.

Forward keeps its autograd graphs until the gradient comes back, or less where memory is short; backward adds the
parameters' gradients to the step's sum, at most once per hop; a round's result becomes the next version. All methods
must be called from one thread, except `attempt` and `forget`. Gradients come from strangers, so their shapes are
checked (`PeerFault`). Whatever isn't finite, or would not be on the wire, is refused where it arises (`NonFinite`).

Knows nothing of peers, leases or rounds. Shapes: B sequences of a microbatch, T tokens, D hidden width.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from swarmd.config import RunConfig
from swarmd.errors import NonFinite, PeerFault
from swarmd.stage.codec import available_codecs, decode, encode
from swarmd.stage.device import check_device
from swarmd.stage.finite import all_finite
from swarmd.stage.gradients import GradientSum, add_up, parameter_digest
from swarmd.stage.graphs import Forward, Graphs, plan_keeping, plan_limit
from swarmd.stage.inputs import Inputs, Source
from swarmd.stage.loss import Loss, chunked_loss
from swarmd.stage.model import build_stage
from swarmd.stage.optimizer import Optimizer
from swarmd.stage.passage import Passage, pass_through
from swarmd.stage.state import OPTIMIZER_PREFIX, PARAMETER_PREFIX, UPDATES, VERSION, StateReader, write_state
from swarmd.values import BackwardResult, Buffer, Encoded, GradientSummary, HopId, TailResult


class StageEngine:
    """Computes stage `stage` of `run` on `device`, from version 0 or from an imported state.

    With `trains` False it has no memory for a sum and an optimizer: gradients are computed, and added to nothing.
    """

    def __init__(self, run: RunConfig, stage: int, device: str = "cpu", *, trains: bool = True) -> None:
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
        self.keeping = plan_keeping(run)
        self.graphs = Graphs(plan_limit(self.device))

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
        inputs, _ = self.inputs.check(hop, source)
        kind, nbytes = ("source", 0) if evaluate else self.keeping.plan(self.graphs.room)
        kept: Passage | Source = source
        if kind == "source":
            output = self._run(inputs)
        else:
            kept, output = pass_through(self.module, inputs, graphs=kind == "graphs")
        encoded = _outgoing(output, codec, hop, "activation")
        if not evaluate:
            self.graphs.keep(hop, attempt, Forward(kept, output.shape, nbytes))
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
        if not all_finite((incoming,)):
            raise NonFinite(f"the gradient of hop {tuple(hop)} came with an infinity or NaN", "gradient", 0)
        passage = self.graphs.take(hop, attempt).kept
        if isinstance(passage, Source):
            passage, _ = pass_through(
                self.module, self.inputs.load(passage)[0], graphs=self.keeping.whole(self.graphs.limit)
            )
        return self._finish(hop, attempt, *passage.backward(incoming), codec, subtract)

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
        inputs, targets = self.inputs.check(hop, Source(tokens, activation))
        if evaluate:
            value, _ = self._loss(hop, self._run(inputs), targets, gradients=False)
            return TailResult(value, targets.numel(), None, accumulated=False)
        passage, hidden = pass_through(self.module, inputs, graphs=self.keeping.whole(self.graphs.limit))
        value, loss = self._loss(hop, hidden, targets, gradients=True)
        assert loss.hidden is not None
        assert loss.weight is not None
        gradients, back = passage.backward(loss.hidden.view_as(hidden))
        gradients[self.module.unembedding()] = loss.weight
        result = self._finish(hop, attempt, gradients, back, codec, subtract)
        return TailResult(value, targets.numel(), result.gradient, result.accumulated)

    def _run(self, inputs: Tensor) -> Tensor:
        """The stage's forward, of which nothing is kept."""
        with torch.no_grad():
            return self.module.hidden(inputs)

    def _loss(self, hop: HopId, hidden: Tensor, targets: Tensor, *, gradients: bool) -> tuple[float, Loss]:
        """The loss in nats, with its gradients if they are asked for. Raises NonFinite."""
        weight = self.module.unembedding().detach().to(self.module.dtype)
        loss = chunked_loss(hidden.flatten(0, 1), weight, targets.flatten(), gradients=gradients)
        value = float(loss.nats)
        if not math.isfinite(value):
            raise NonFinite(f"the loss of hop {tuple(hop)} is {value}", "loss")
        return value, loss

    def _finish(
        self,
        hop: HopId,
        attempt: int,
        gradients: dict[nn.Parameter, Tensor],
        back: Tensor | None,
        codec: str,
        subtract: bool,
    ) -> BackwardResult:
        """Refuses bad numbers, encodes, and only then counts the hop, or counts it no more.

        gradients: by parameter; back: of the input, None at the first stage.
        """
        formed = [gradients[parameter] for parameter in self.parameters]
        if not all_finite(formed if back is None else [*formed, back]):
            raise NonFinite(f"the gradients of hop {tuple(hop)} have an infinity or NaN", "gradient")
        outgoing = None if back is None else _outgoing(back, codec, hop, "gradient")
        with self.graphs.unforgotten(hop, attempt):
            changes = not self.sum.frozen and (hop in self.sum.counted) == subtract
            if changes:
                self.sum.counted ^= {hop}
            counted = hop in self.sum.counted
        if changes:
            self.sum.add(formed, sign=-1 if subtract else 1)
        return BackwardResult(outgoing, counted)

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
        total = add_up(contributions, self.device)
        return _outgoing(total.div_(tokens), codec, self.version + 1, "average")

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
        reader = StateReader(state, own)
        self.graphs.clear()  # they are of the state that is overwritten
        for name in own.keys() - {VERSION, UPDATES}:
            reader.load(name, own[name])
        self.optimizer.updates = reader.integer(UPDATES)
        self._broken = False
        self._end(reader.version)
        return self.digest()

    def _state(self) -> dict[str, Tensor]:
        state = {VERSION: torch.tensor(self.version, dtype=torch.int64)}
        state.update({PARAMETER_PREFIX + name: value.detach() for name, value in self.module.named().items()})
        state.update({OPTIMIZER_PREFIX + name: value for name, value in self.optimizer.tensors().items()})
        return state


def _outgoing(tensor: Tensor, codec: str, of: HopId | int, what: str) -> Encoded:
    """A tensor as it travels. Raises NonFinite, which says of which hop or step it is."""
    try:
        return encode(tensor, codec)
    except NonFinite as trouble:
        whose = f"step {of}" if isinstance(of, int) else f"hop {tuple(of)}"
        raise NonFinite(f"the {what} of {whose} can't be sent: {trouble}", what) from None
