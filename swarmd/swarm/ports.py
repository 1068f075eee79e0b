"""The ports: all that the swarm needs of the world, a network, a device, data and a disk. Nothing else reaches it.

In production these are `net.libp2p`, `stage.worker`, `text.data` and `daemon.store`; in virtual time they are in
`sim.world`. Time comes from the running event loop, chance from an injected `random.Random`.
"""

from collections.abc import Awaitable, Callable, Container, Sequence
from typing import Any, NamedTuple, Protocol

from swarmd.values import (
    BackwardResult,
    Buffer,
    ComputeProgress,
    Encoded,
    Frame,
    GradientSummary,
    HopId,
    PeerId,
    TailResult,
    Urgency,
)

Handler = Callable[[PeerId, Frame], Awaitable[Frame]]
"""Answers a request. Raising `Refused` answers with its sentence; `PeerFault` costs the peer its connection."""

Listener = Callable[[PeerId, Frame], None]
"""Hears a gossip message: who wrote it, and what. Must not block or raise."""


class Transport(Protocol):
    """Requests between peers, gossip, and word of who went away.

    A request is delivered at most once, may be reordered or lost; every loss is an exception at `request`. Gossip may
    be lost silently, so nothing that exactness needs travels by it.
    """

    @property
    def peer_id(self) -> PeerId: ...

    def addresses(self) -> tuple[str, ...]:
        """Full multiaddrs, ending in /p2p/<peer id>, at which others can dial this peer."""

    def traffic(self) -> tuple[int, int]:
        """Bytes of frames sent and received so far."""

    def serve(self, handler: Handler) -> None:
        """Sets who answers requests. Each runs in a task of its own; it is cancelled when the peer's connection
        breaks.
        """

    async def request(
        self, peer: PeerId, frame: Frame, *, deadline_s: float | None = None, urgency: Urgency = "control"
    ) -> Frame:
        """Asks and waits for the answer, dialling the peer at its learned addresses if need be.

        Cancelling it forgets the answer; the other side isn't told.
        Raises PeerUnreachable, TimeoutError (after `deadline_s`; None waits as long as the connection lives), Refused,
        PeerFault (the answer was malformed).
        """

    async def connect(self, address: str) -> PeerId:
        """Dials a multiaddr and says who is there. Raises ConfigError (not a usable multiaddr), PeerUnreachable."""

    def learn(self, peer: PeerId, addresses: Sequence[str], machine: str | None = None) -> None:
        """Remembers where a peer says that it can be dialled, and on which machine it is; None: it didn't say, somebody
        else told. Bounded; newest addresses win, and what has worked is tried first.
        """

    def connected(self) -> tuple[PeerId, ...]:
        """Peers with a live connection, in the order they came."""

    def network_of(self, peer: PeerId) -> str:
        """The network from which a connected peer comes: of an address the first 24 bits, or 48 of IPv6; "" if that
        isn't known.
        """

    def on_disconnected(self, callback: Callable[[PeerId], None]) -> None:
        """Calls back when the last connection to a peer is gone."""

    async def drop(self, peer: PeerId) -> None:
        """Cuts the connection to a peer at once."""

    def subscribe(self, topic: str, listener: Listener) -> None: ...

    def unsubscribe(self, topic: str) -> None: ...

    async def publish(self, topic: str, frame: Frame) -> None:
        """Gossips a small frame without buffers. May be lost without a word."""


class Compute(Protocol):
    """One stage on one device. Work is done one task at a time: backward before forward, older before newer.

    Every method may raise NonFinite where a loss or gradient is not finite (nothing was accumulated then), MemoryError,
    and DeviceLost once it will never compute again; `progress().lost` says so, too.
    """

    @property
    def gradient_size(self) -> int:
        """Elements of the stage's flattened gradient."""

    @property
    def codecs(self) -> tuple[str, ...]:
        """Codecs this device can encode and decode."""

    def progress(self) -> ComputeProgress: ...

    async def forward(
        self, hop: HopId, tokens: Buffer, activation: Encoded | None, *, codec: str, evaluate: bool = False
    ) -> Encoded:
        """Runs the stage (not the last one). Keeps what backward needs, unless `evaluate`.

        tokens: int32 little-endian [sequences, T + 1]; activation: [sequences, T, hidden], None at the head.
        """

    async def backward(self, hop: HopId, gradient: Encoded, *, codec: str, subtract: bool = False) -> BackwardResult:
        """Backward of a hop whose forward ran here; adds its share to the step's sum unless that is frozen, or the
        hop is in it already. `subtract`: takes its share out instead, unless that is frozen or has none.

        Raises HopForgotten if `forget` came first, KeyError if no forward of it ran here.
        """

    async def tail(
        self,
        hop: HopId,
        tokens: Buffer,
        activation: Encoded | None,
        *,
        codec: str,
        evaluate: bool = False,
        subtract: bool = False,
    ) -> TailResult:
        """Forward, loss and backward of the last stage; accumulates or subtracts like `backward`. Raises
        HopForgotten.
        """

    def forget(self, hop: HopId) -> None:
        """Drops what is kept for a hop; one that is under way will not be accumulated."""

    async def freeze(self, step: int) -> None:
        """From now on nothing more is accumulated into the step's sum."""

    async def thaw(self, step: int) -> None:
        """Undoes `freeze`: a round is begun again, and repairs may add to the sum first."""

    async def absorb(self, step: int, indices: Sequence[int], slices: Sequence[Encoded]) -> bool:
        """Adds another replica's whole sum of a step, in slices that follow each other, with what is counted in it.
        False, and nothing has changed, if this sum is frozen or has one of the indices. Raises PeerFault for slices
        that aren't one whole, finite sum.
        """

    async def contribution(self, step: int, start: int, stop: int, *, codec: str) -> Encoded:
        """Elements [start, stop) of the step's flattened sum (fp32, over target tokens; zeros if nothing was
        accumulated).
        """

    async def reduce(self, contributions: Sequence[Encoded], tokens: int, *, codec: str) -> Encoded:
        """Decodes, adds in the given order, divides by `tokens`, encodes."""

    async def assemble(self, step: int, parts: Sequence[Encoded]) -> GradientSummary:
        """Puts the averaged parts together, in order, as the gradient `apply` will use. Same bytes, same digest."""

    async def apply(self, step: int, *, learning_rate: float, clip_factor: float) -> str:
        """Optimizer step with the assembled gradient times `clip_factor`; ends the step. Returns the parameters'
        digest.
        """

    async def skip(self, step: int) -> str:
        """Ends the step without changing parameters. Returns their digest."""

    async def export_state(self) -> Buffer:
        """Parameters, moments and schedule position at the present version as one safetensors buffer."""

    async def import_state(self, state: Buffer) -> str:
        """Loads what `export_state` gave. Returns the parameters' digest. Raises ValueError if it doesn't fit."""


class Data(Protocol):
    """This head's copy of the run's data. Index -> sequences is a pure function of the run's seed."""

    @property
    def digest(self) -> str:
        """The digest of the tokens; a peer whose copy differs must not be a head."""

    async def microbatch(self, step: int, index: int) -> Buffer:
        """Tokens of a microbatch: int32 little-endian [sequences_per_microbatch, T + 1]."""

    async def held_out(self, index: int) -> Buffer:
        """Tokens of a validation microbatch, same shape; the same for the same index, never trained on."""


class SavedCheckpoint(NamedTuple):
    """A checkpoint on a disk, without its state."""

    version: int
    stage: int
    record: Buffer  # as it was saved (history/record_format.py)
    root: str  # names the state's bytes (swarmd/chunks.py)


class Store(Protocol):
    """The disk of a peer."""

    def append_ledger(self, line: dict[str, Any]) -> None:
        """A line per committed step. A full disk is reported, never raised."""

    def ledger_tail(self, count: int) -> dict[int, str]:
        """The hashes of the records of the last lines, by step. Never raises."""

    def void_ledger(self, version: int, records: Container[str] | None = None) -> None:
        """Voids the lines of steps after `version`: they belong to a history that lost, or will come again. `records`:
        only those of these records. Never raises.
        """

    async def save_checkpoint(
        self, version: int, stage: int, state: Buffer, record: Buffer, *, copy: bool = False
    ) -> bool:
        """Writes a stage's state at a version, manifest last, and lets go of older ones. `copy`: of another stage than
        this peer's; those have a bound of their own. Whether it is on the disk now: a full one is reported, never
        raised.
        """

    async def list_checkpoints(self) -> list[SavedCheckpoint]:
        """Every checkpoint here that is whole, newest first. Never raises."""

    def damaged(self) -> list[tuple[int, int]]:
        """Version and stage of every checkpoint here that `list_checkpoints` found damaged, newest first."""

    async def load_checkpoint(self, version: int, stage: int, root: str = "") -> tuple[Buffer, Buffer] | None:
        """The state and the record of a checkpoint. None if it isn't here, not whole, or of another root than this."""

    async def read_checkpoint(self, version: int, stage: int, start: int, stop: int) -> Buffer | None:
        """Bytes [start, stop) of a checkpoint's state as they are now; None if they can't be read."""
