"""The status of a daemon: filled by the daemon, printed by swarmctl, which computes nothing.

Plain data; the field names are the JSON contract (docs/design.md, "The contract with the outside") and are
kept stable.
"""

from dataclasses import dataclass, field
from typing import Literal

PeerState = Literal["idle", "looking", "joining", "waiting", "serving", "paused", "draining", "finished", "left"]


@dataclass(frozen=True)
class Queues:
    """Hops at this peer, by what they wait for."""

    forward: int = 0
    backward: int = 0
    in_flight: int = 0  # admitted and not yet answered, the two above included
    downstream: int = 0  # passed on, gradient not back yet
    retained_bytes: int = 0
    idle_because: str = ""  # empty while computing


@dataclass(frozen=True)
class PeerRow:
    """One peer as this daemon sees it."""

    peer_id: str
    stage: int | None
    state: str
    version: int
    forward: int
    backward: int
    in_flight: int
    microbatches_per_second: float
    device: str
    addresses: tuple[str, ...]
    last_heard_seconds: float  # 0 for itself
    is_self: bool = False
    suspect: bool = False
    software: str = ""  # version of its swarmd; "": a release that doesn't say


@dataclass(frozen=True)
class Bytes:
    """Bytes of frames, since the daemon started."""

    sent: int = 0
    received: int = 0


@dataclass(frozen=True)
class HopRow:
    """One microbatch at this peer (`swarmctl queues`)."""

    step: int
    index: int
    state: str  # waiting | forward | passed | backward
    custodian: str  # peer id of the sender, "" at the head
    holder: str  # peer id it was passed to, "" if it is here
    seconds: float  # in this state


@dataclass(frozen=True)
class Wait:
    """Something that a daemon waits for. While it is the same, `what` is; the rest may change."""

    what: str  # goes after "waiting for"
    seconds: float = 0.0  # for so long; the daemon counts
    progress: str = ""  # how far it is
    tried: str = ""  # what was tried last, and what came of it
    advice: str = ""  # what a person may do about it

    def sentence(self) -> str:
        """All of it in one line."""
        known = [f"for {self.seconds:.0f} s" if self.seconds >= 1 else "", self.progress]
        known.append(f"last: {self.tried}" if self.tried else "")
        details = ", ".join(filter(None, known))
        return self.what + (f" ({details})" if details else "") + (f": {self.advice}" if self.advice else "")

    def short(self) -> str:
        """The wait in a sentence: what for, how far it is, and what to do."""
        return ": ".join(filter(None, (self.what, self.progress, self.advice)))


@dataclass(frozen=True)
class Status:
    """The whole daemon at a glance."""

    peer_id: str
    run: str  # name of the run, "" while idle
    fingerprint: str
    model: str  # one line: layers, width, parameters
    stage: int | None
    stages: int
    state: PeerState
    waiting_for: str  # what the swarm lacks, one sentence; "" when it lacks nothing
    version: int
    step: int  # the step being computed: version + 1
    steps: int
    loss: float | None  # the swarm's, of the last committed step, nats per token
    validation_loss: float | None
    tokens_per_second: float  # the swarm's
    microbatches_per_second: float  # this peer's
    progress: float  # fraction of the step's microbatches that are done, as far as this peer knows
    seconds_left: float | None
    queues: Queues
    peers: dict[
        str, int
    ]  # stage number (as text, for JSON) -> live replicas, also those of which only the number is known
    addresses: tuple[str, ...]
    device: str
    bytes: Bytes
    uptime_seconds: float
    conductor: str = ""
    record: str = ""  # hash of the newest commit record
    ledger: dict[str, int] = field(default_factory=dict)  # resent, subtracted, lost, duplicated since the run began
    memory_bytes: int = 0
    open_files: int = 0  # file descriptors, sockets included
    tasks: int = 0  # of the event loop
    opened: bool = False  # its stage is on the device
    microbatches_done: int = 0  # accumulated here since the daemon began to serve
    state_bytes: int = 0  # of the stage's state that have come, while it is pulled
    state_bytes_total: int = 0  # 0: nothing is pulled
    state_donors: int = 0  # that give it
    moving_to: int | None = None  # the stage that it will serve next
    moved_because: str = ""  # why it goes to another stage, or last went; "" if it was told to, or never did
    doing: str = ""  # what it was told to do and is at, one sentence; "" when it was told nothing
    waits: tuple[Wait, ...] = ()  # whatever this daemon waits for; `waiting_for` is the first of it
    final_state: str = ""  # once the run is over: on whose disks each stage's last version is, one sentence
    warnings: tuple[str, ...] = ()  # what is wrong here though training goes on: a full disk, ...
    software: str = ""  # version of swarmd
    torch: str = ""  # version
    unseen: dict[str, int] = field(default_factory=dict)  # of `peers`, those of whom only the number is known here
    dtype: str = ""  # of the matrix products here: fp32, bf16 or fp16; "" before the stage is open
    repeats_per_thousand: float = 0.0  # hops, that were computed again as they left that dtype's range
