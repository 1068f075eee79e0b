"""The options of `swarmd start`: how each is typed, what was given, and which contradict each other.

What follows from them, a NodeConfig and a RunConfig, is `start.py`.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import typer

from swarmd.command_line import remember_debug
from swarmd.completion import one_of, preset
from swarmd.config import ComputeDtype, Recompute
from swarmd.errors import ConfigError

PEER_ADDRESS_EXAMPLE = "/ip4/203.0.113.5/tcp/4001/p2p/<peer id>"

Model = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE", help="Found a run: a preset (tiny, 125m, ...) or a TOML file.", autocompletion=preset
    ),
]
Bootstrap = Annotated[
    list[str] | None, typer.Option(metavar="MULTIADDR", help="Join the swarm of the peer there. Repeatable.")
]
Mdns = Annotated[bool, typer.Option("--mdns", help="Find peers on the local network, or be found there with --model.")]
Idle = Annotated[bool, typer.Option("--idle", help="Wait for `swarmctl join`.")]
Gpu = Annotated[
    str | None,
    typer.Option(metavar="N|all", help="Compute on CUDA device N. all: a daemon for each, with a home in --home."),
]
Device = Annotated[
    str | None,
    typer.Option(metavar="cpu|cuda:N", help="Compute there. Default: cpu.", autocompletion=one_of("cpu", "cuda:0")),
]
Stage = Annotated[str | None, typer.Option(metavar="K|auto", help="Hold stage K. Default: the one that needs it most.")]
Listen = Annotated[
    list[str] | None,
    typer.Option(
        metavar="MULTIADDR",
        help="Listen there. Repeatable. Default: /ip4/0.0.0.0/tcp/4001, or the next port that is free; the home keeps "
        "it.",
    ),
]
Announce = Annotated[
    list[str] | None,
    typer.Option(metavar="MULTIADDR", help="Where others reach it, behind NAT or a proxy. Repeatable."),
]
Data = Annotated[
    str | None,
    typer.Option(
        metavar="SOURCE",
        help="Train on this: stdlib, a path, hf:OWNER/NAME. See the README.",
        autocompletion=one_of("stdlib"),
    ),
]
Tokenizer = Annotated[
    str | None, typer.Option(metavar="FILE", help="The run's tokenizer.json, where the run trains on no bytes.")
]
DataLimit = Annotated[
    float | None,
    typer.Option("--data-limit", metavar="GB", help="Of a dataset's tokens on this disk. Default: 275."),
]
HomePath = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Directory of this daemon: identity, log, ledger, checkpoints. Default: $SWARMD_HOME or ~/.swarmd.",
    ),
]
Steps = Annotated[int | None, typer.Option(metavar="N", min=1, help="Steps of the run (with --model or --resume).")]
Stages = Annotated[int | None, typer.Option(metavar="S", min=1, help="Stages of the run (with --model).")]
Threads = Annotated[int, typer.Option(metavar="N", help="CPU threads of torch. 0: its own choice.")]
ComputeDtypeName = Annotated[
    ComputeDtype,
    typer.Option(
        help="Of this daemon's matrix products. auto: bf16 from NVIDIA's Ampere on, fp16 on Volta and Turing, fp32 on "
        "CPUs.",
    ),
]
RecomputeName = Annotated[
    Recompute,
    typer.Option(
        help="Run forwards again in backward, which saves memory. auto: where it is short.",
    ),
]
DrainTimeout = Annotated[
    float | None, typer.Option(metavar="S", help="Bound on the drain before it ends. Default: 60.")
]
SpotFile = Annotated[
    str | None, typer.Option(metavar="PATH", help="Drain once this file exists: the machine is about to go.")
]
SpotCommand = Annotated[str | None, typer.Option(metavar="CMD", help="Drain once this line of shell succeeds.")]
SpotInterval = Annotated[float | None, typer.Option(metavar="S", help="Look for the notice so often. Default: 5.")]
SpotNotice = Annotated[
    float | None,
    typer.Option(
        metavar="S",
        help="From the notice to the end. What is more than --drain-timeout is used: it works on while others prepare "
        "to take its place. Default: 30; AWS gives 120.",
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Go on with the run of --home from the checkpoints that its peers have. With --model: begin it where "
        "there are none yet.",
    ),
]
StageLostTimeout = Annotated[
    float | None,
    typer.Option(metavar="S", help="Return to checkpoints when a stage is empty for so long. Default: 60."),
]
FinalCopiesTimeout = Annotated[
    float | None,
    typer.Option(
        metavar="S",
        help="At the end of the run, stay so long until every stage's final state is on two machines. Default: 60.",
    ),
]
FoundAfter = Annotated[
    float | None,
    typer.Option(
        metavar="S",
        help="Look for others of the run that --home knows for so long before it is founded again. Default: 60.",
    ),
]
Wait = Annotated[
    float | None,
    typer.Option(metavar="S", help="End with 1 if no run is found in so long. Default: look for ever."),
]
Metrics = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="Serve /metrics for Prometheus there, as at 127.0.0.1:9464.")
]
Verbose = Annotated[bool, typer.Option("--debug", callback=remember_debug, help="Log everything; show tracebacks.")]
LogJson = Annotated[bool, typer.Option("--log-json", help="Log JSON objects, one a line.")]

OPTION_OF = {
    "threads": "--threads",
    "drain_s": "--drain-timeout",
    "spot_interval_s": "--spot-interval",
    "spot_notice_s": "--spot-notice",
    "found_after_s": "--found-after",
    "wait_s": "--wait",
    "stage": "--stage",
    "limits.stage_lost_timeout_s": "--stage-lost-timeout",
    "limits.final_copies_timeout_s": "--final-copies-timeout",
    "limits.stream_bytes": "--data-limit in bytes",
}
"""The options that give the settings of a node, which `swarmd/config.py` bounds."""


ALL = "all"
"""The word for every card of this machine."""

WORD_OF = {
    "drain_s": "--drain-timeout",
    "spot_interval_s": "--spot-interval",
    "spot_notice_s": "--spot-notice",
    "stage_lost_timeout_s": "--stage-lost-timeout",
    "final_copies_timeout_s": "--final-copies-timeout",
    "data_limit_gb": "--data-limit",
    "found_after_s": "--found-after",
    "wait_s": "--wait",
}
"""The options that are not called as their fields of StartOptions."""


@dataclass(frozen=True)
class StartOptions:
    """The options given to `swarmd start`. None and empty mean: not given."""

    model: str | None = None
    gpu: str | None = None
    device: str | None = None
    stage: str | None = None
    bootstrap: tuple[str, ...] = ()
    listen: tuple[str, ...] = ()
    announce: tuple[str, ...] = ()
    data: str | None = None
    steps: int | None = None
    stages: int | None = None
    idle: bool = False
    mdns: bool = False
    threads: int = 0
    compute_dtype: ComputeDtype = "auto"
    recompute: Recompute = "auto"
    drain_s: float | None = None
    spot_file: str | None = None
    spot_command: str | None = None
    spot_interval_s: float | None = None
    spot_notice_s: float | None = None
    resume: bool = False
    stage_lost_timeout_s: float | None = None
    final_copies_timeout_s: float | None = None
    tokenizer: str | None = None
    data_limit_gb: float | None = None
    found_after_s: float | None = None
    wait_s: float | None = None
    metrics: str | None = None


def words_of(options: StartOptions) -> list[str]:
    """The words of the command line that give these options."""
    words = []
    for field in fields(options):
        value = getattr(options, field.name)
        if value == field.default:
            continue
        word = WORD_OF.get(field.name, "--" + field.name.replace("_", "-"))
        several = value if isinstance(value, tuple) else (value,)
        words += [word if one is True else f"{word}={one}" for one in several]
    return words


def check_options(options: StartOptions) -> None:
    """Refuses options that contradict each other or can't be right. Raises ConfigError."""
    given = [name for name, value in (("--model", options.model), ("--bootstrap", options.bootstrap)) if value]
    if len(given) > 1:
        raise ConfigError("give --model to found a run or --bootstrap to join one, not both.")
    given += ["--mdns"] * options.mdns + ["--resume"] * options.resume + ["--wait"] * (options.wait_s is not None)
    if options.idle and given:
        raise ConfigError(f"--idle waits for `swarmctl join`; leave it out to use {given[0]}.")
    _check_device(options)
    resumes = options.resume and not options.bootstrap
    for name, value in (("--steps", None if resumes else options.steps), ("--stages", options.stages)):
        if value is not None and options.model is None:
            more = ", or with --resume where it is founded again" if name == "--steps" else ""
            raise ConfigError(f"{name} belongs to the run, so give it with --model where the run is founded{more}.")
    _check_words(options)


def _check_words(options: StartOptions) -> None:
    """Refuses names and addresses that can't be any. Raises ConfigError."""
    for name, value in (("--data", options.data), ("--tokenizer", options.tokenizer)):
        if value is not None and value.encode(errors="ignore").decode() != value:
            raise ConfigError(f"{name} {value} is a name that isn't UTF-8; give it one that is, as with ln -s.")
    for address in options.bootstrap:
        if not address.startswith("/") or "/p2p/" not in address:
            raise ConfigError(
                f"--bootstrap {address} is not the address of a peer; it looks like {PEER_ADDRESS_EXAMPLE}."
            )
    for address in options.listen:
        if not address.startswith("/"):
            raise ConfigError(f"--listen {address} is not a multiaddr; one looks like /ip4/0.0.0.0/tcp/4001.")
    for address in options.announce:
        if not address.startswith("/"):
            raise ConfigError(f"--announce {address} is not a multiaddr; one looks like /ip4/203.0.113.5/tcp/4001.")


def _check_device(options: StartOptions) -> None:
    if options.gpu is not None and options.device is not None:
        raise ConfigError("give --gpu or --device, not both.")
    if options.gpu is not None and options.gpu != ALL:
        check_gpu(options.gpu)


def check_gpu(text: str) -> None:
    """Raises ConfigError unless it is the number of a card."""
    if not (text.isascii() and text.isdecimal()):
        raise ConfigError(f"--gpu {text} is no card; give its number, from 0, or {ALL}.")


def parse_endpoint(text: str) -> tuple[str, int]:
    """The host and the port of --metrics. Raises ConfigError."""
    host, _, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    wrong = not bare or "/" in bare or (":" in bare and bare == host)  # an IPv6 address needs its brackets
    if wrong or not (port.isascii() and port.isdecimal() and int(port) < 1 << 16):
        raise ConfigError(f"--metrics {text} is not an address and a port; it looks like 127.0.0.1:9464.")
    return bare, int(port)
