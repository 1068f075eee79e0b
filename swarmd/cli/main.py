"""The command line of `swarmd`: what a person types, checked and turned into a NodeConfig and a RunConfig.

Relies on typer; everything heavy (uvloop, torch, libp2p, pydantic) is imported in the function that needs it, because
`--help` and every mistake should be answered at once. What the daemon does with its settings is `daemon/process.py`.
"""

import dataclasses
import errno
import logging
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from swarmd import __version__
from swarmd.config import NodeConfig, RunConfig
from swarmd.daemon.home import Home, Remembered, RememberedRun, default_home
from swarmd.errors import ConfigError, ControlError, SwarmError
from swarmd.printable import printable, printable_lines

if TYPE_CHECKING:
    from swarmd.daemon.text import LocalText

EXIT_FAILED = 1  # failed while running
EXIT_USER = 2  # the user must change something
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # whatever was being written
PEER_ID_EXAMPLE = "/ip4/203.0.113.5/tcp/4001/p2p/<peer id>"

log = logging.getLogger(__name__)

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Train one large model on many weak, scattered machines. `swarmd demo` shows a whole swarm on this one.",
)

_START_EXAMPLES = """
\b
Examples:
  swarmd start --model tiny --device cpu           found a run of a preset; prints its multiaddr
  swarmd start --bootstrap MULTIADDR --gpu 0       join it: its settings come from that peer
  swarmd start --model my-run.toml --stage 0       found a run from a file, and hold stage 0
  swarmd start --idle                              wait for `swarmctl join --bootstrap MULTIADDR`
  swarmd start                                     do again what was last joined
  swarmd start --spot-file /run/spot-notice        drain and end once that file appears
  swarmd start --resume                            found the run of this home again, from its peers' checkpoints
  swarmd start --resume --steps 60                 the same, and let it go on to 60 steps in all
"""

_DEMO_EXAMPLES = """
\b
Examples:
  swarmd demo                                      6 daemons, 3 stages: about three minutes on two cores
  swarmd demo --peers 4 --stages 2 --steps 50      a smaller, shorter one
  swarmd demo --kill-every 20                      the same while a daemon dies and returns now and then
  swarmd demo --json > result.json                 figures on stdout, progress on stderr
"""

_INSTALL_EXAMPLES = """
\b
Examples:
  sudo swarmd service install                      then: sudo systemctl enable --now swarmd@0
  swarmd service install --user                    then: systemctl --user enable --now swarmd@0
  swarmd service install --print                   look at it first
"""

_PROFILE_EXAMPLES = """
\b
Examples:
  swarmd profile --output laptop.json              this machine's CPU, daemons of one thread
  swarmd profile --device cuda:0 --output box.json its first GPU
  swarmctl plan --model tiny --peers 6xlaptop.json --one-machine
"""

_HOME_HELP = "Directory of this daemon: identity, log, ledger, checkpoints. Default: $SWARMD_HOME or ~/.swarmd."
_LISTEN_HELP = (
    "Listen there. Repeatable. Default: /ip4/0.0.0.0/tcp/4001, or the next port that is free; the home keeps it."
)
_RESUME_HELP = (
    "Go on with the run of --home from the checkpoints that its peers have. With --model: begin it where "
    "there are none yet."
)
_FINAL_COPIES_HELP = (
    "At the end of the run, stay so long until every stage's final state is on two machines. Default: 60."
)
_NOTICE_HELP = (
    "From the notice to the end. What is more than --drain-timeout is used: it works on while others prepare to "
    "take its place. Default: 30; AWS gives 120."
)

StageLostTimeout = Annotated[
    float | None,
    typer.Option(metavar="S", min=0, help="Return to checkpoints when a stage is empty for so long. Default: 60."),
]
FoundAfter = Annotated[
    float | None,
    typer.Option(
        metavar="S",
        min=0,
        help="Look for others of the run that --home knows for so long before it is founded again. Default: 60.",
    ),
]
Wait = Annotated[
    float | None,
    typer.Option(metavar="S", min=0, help="End with 1 if no run is found in so long. Default: look for ever."),
]


_Tokenizer = Annotated[
    str | None, typer.Option(metavar="FILE", help="The run's tokenizer.json, where the run trains on no bytes.")
]
_DataLimit = Annotated[
    float | None,
    typer.Option("--data-limit", metavar="GB", min=0, help="Of a dataset's tokens on this disk. Default: 275."),
]


@dataclass(frozen=True)
class StartOptions:
    """What was given to `swarmd start`. None and empty mean: not given."""

    model: str | None = None
    gpu: int | None = None
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


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"swarmd {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command(epilog=_START_EXAMPLES)
def start(
    model: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="Found a run: a preset (tiny, 125m, ...) or a TOML file.")
    ] = None,
    bootstrap: Annotated[
        list[str] | None, typer.Option(metavar="MULTIADDR", help="Join the swarm of the peer there. Repeatable.")
    ] = None,
    mdns: Annotated[
        bool, typer.Option("--mdns", help="Find peers on the local network, or be found there with --model.")
    ] = False,
    idle: Annotated[bool, typer.Option("--idle", help="Wait for `swarmctl join`.")] = False,
    gpu: Annotated[int | None, typer.Option(metavar="N", min=0, help="Compute on CUDA device N.")] = None,
    device: Annotated[str | None, typer.Option(metavar="cpu|cuda:N", help="Compute there. Default: cpu.")] = None,
    stage: Annotated[
        str | None, typer.Option(metavar="K|auto", help="Hold stage K. Default: the one that needs it most.")
    ] = None,
    listen: Annotated[list[str] | None, typer.Option(metavar="MULTIADDR", help=_LISTEN_HELP)] = None,
    announce: Annotated[
        list[str] | None,
        typer.Option(metavar="MULTIADDR", help="Where others reach it, behind NAT or a proxy. Repeatable."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Train on this: stdlib, a path, hf:OWNER/NAME. See the README.")
    ] = None,
    tokenizer: _Tokenizer = None,
    data_limit_gb: _DataLimit = None,
    home: Annotated[Path | None, typer.Option(metavar="DIR", help=_HOME_HELP)] = None,
    steps: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Steps of the run (with --model or --resume).")
    ] = None,
    stages: Annotated[int | None, typer.Option(metavar="S", min=1, help="Stages of the run (with --model).")] = None,
    threads: Annotated[int, typer.Option(metavar="N", min=0, help="CPU threads of torch. 0: its own choice.")] = 0,
    drain_timeout: Annotated[
        float | None, typer.Option(metavar="S", min=0.1, help="Bound on the drain before it ends. Default: 60.")
    ] = None,
    spot_file: Annotated[
        str | None, typer.Option(metavar="PATH", help="Drain once this file exists: the machine is about to go.")
    ] = None,
    spot_command: Annotated[
        str | None, typer.Option(metavar="CMD", help="Drain once this line of shell succeeds.")
    ] = None,
    spot_interval: Annotated[
        float | None, typer.Option(metavar="S", min=0.1, help="Look for the notice so often. Default: 5.")
    ] = None,
    spot_notice: Annotated[float | None, typer.Option(metavar="S", min=0, help=_NOTICE_HELP)] = None,
    resume: Annotated[bool, typer.Option("--resume", help=_RESUME_HELP)] = False,
    stage_lost_timeout: StageLostTimeout = None,
    final_copies_timeout: Annotated[float | None, typer.Option(metavar="S", min=0, help=_FINAL_COPIES_HELP)] = None,
    found_after: FoundAfter = None,
    wait: Wait = None,
    debug: Annotated[bool, typer.Option("--debug", help="Log everything; show tracebacks.")] = False,
    log_json: Annotated[bool, typer.Option("--log-json", help="Log JSON objects, one a line.")] = False,
) -> int:
    """Start a daemon that holds one stage of a run and trains it with its peers."""
    options = StartOptions(
        model, gpu, device, stage, tuple(bootstrap or ()), tuple(listen or ()), tuple(announce or ()), data, steps,
        stages, idle, mdns, threads, drain_timeout, spot_file, spot_command, spot_interval, spot_notice, resume,
        stage_lost_timeout, final_copies_timeout, tokenizer, data_limit_gb, found_after, wait,
    )  # fmt: skip
    return _reported(lambda: _start(options, Home(home or default_home()), debug=debug, log_json=log_json), debug)


@app.command(epilog=_DEMO_EXAMPLES)
def demo(
    peers: Annotated[int, typer.Option(metavar="N", min=1, help="Daemons to start.")] = 6,
    stages: Annotated[int | None, typer.Option(metavar="S", min=1, help="Stages. Default: the model's.")] = None,
    steps: Annotated[int | None, typer.Option(metavar="N", min=1, help="Steps. Default: the model's.")] = None,
    model: Annotated[str, typer.Option(metavar="NAME|FILE", help="What to train.")] = "tiny",
    home: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the daemons live. Default: a fresh temporary directory.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout; progress on stderr.")] = False,
    kill_every: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", min=1, help="Kill a daemon so often, at random, and start it again."),
    ] = None,
    timeout: Annotated[float, typer.Option(metavar="S", min=1, help="Give up after this many seconds.")] = 3600,
    uneven: Annotated[
        bool, typer.Option("--uneven", help="All spare daemons start at stage 0; they go where they are needed.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> int:
    """Start a whole swarm on this machine, watch it train, and see what it learned."""

    def run() -> int:
        from swarmd.demo.run import DemoOptions, run_demo

        return run_demo(DemoOptions(peers, model, stages, steps, home, as_json, timeout, kill_every, uneven))

    return _reported(run, debug)


service = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Run daemons under systemd.")
app.add_typer(service, name="service")


@service.callback()
def _service() -> None:
    pass


@service.command(epilog=_INSTALL_EXAMPLES)
def install(
    show: Annotated[bool, typer.Option("--print", help="Print the unit; write nothing.")] = False,
    user: Annotated[bool, typer.Option("--user", help="For this user's own systemd, without root.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> int:
    """Write the unit swarmd@.service, one instance for each GPU, with the paths of this machine."""

    def run() -> int:
        from swarmd.daemon import service as files

        if show:
            print(files.unit_text(user=user), end="")
        else:
            print(files.advice(files.install(user=user), user=user))
        return 0

    return _reported(run, debug)


@app.command(epilog=_PROFILE_EXAMPLES)
def profile(
    output: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Write it there. Default: print it on stdout.")
    ] = None,
    device: Annotated[str, typer.Option(metavar="cpu|cuda:N", help="What to measure.")] = "cpu",
    threads: Annotated[int, typer.Option(metavar="N", min=1, help="CPU threads of a daemon.")] = 1,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> int:
    """Measure how fast this machine computes, for `swarmctl plan`. Takes a minute; nothing else should run."""

    def run() -> int:
        import json

        from swarmd.stage.profile import measure_profile

        measured = measure_profile(
            device, threads, told=lambda line: print(f"measuring: {printable(line)}", file=sys.stderr)
        )
        if output is None:
            print(json.dumps(measured))
            return 0
        measured["name"] = output.stem
        try:
            output.write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"can't write {output} ({error.strerror}); choose another --output.") from error
        print(f"{printable(output)}: use it as --peers 4x{printable(output)} in `swarmctl plan`.", file=sys.stderr)
        return 0

    return _reported(run, debug)


@app.command()
def reshape(
    homes: Annotated[list[Path], typer.Argument(metavar="HOME...", help="Homes that hold the run's checkpoints.")],
    stages: Annotated[int, typer.Option(metavar="S", min=1, help="Stages of the new run.")],
    home: Annotated[Path, typer.Option(metavar="DIR", help="Where the new run's checkpoints go: a new home.")],
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> int:
    """Cut a run's checkpoints into another number of stages, to go on with `swarmd start --resume --home DIR`."""
    return _reported(lambda: _reshape([Home(path) for path in homes], stages, Home(home)), debug)


def _reshape(sources: list[Home], stages: int, home: Home) -> int:
    from swarmd import settings
    from swarmd.config import fingerprint, to_plain
    from swarmd.daemon.patience import said_if_long
    from swarmd.daemon.prolonging import remembered_run
    from swarmd.stage.reshape import reshape as cut_anew

    run = remembered_run(sources[0])
    target = settings.with_overrides(run, stages=stages)
    with home.locked():
        if home.has_checkpoints():
            raise ConfigError(f"{home.path} holds checkpoints already; choose another --home.")
        try:
            places = [source.checkpoints for source in sources]
            with said_if_long(f"cutting the checkpoints of {run.name} into {stages} stages", _warn):
                version = cut_anew(places, run, target, home.checkpoints, _warn)
            known = sources[0].remembered_run()
            text = (known.data, known.tokenizer) if known is not None else (None, None)
            home.remember_run(RememberedRun(to_plain(target), fingerprint(target), None, (), False, *text))
        except OSError as error:
            raise ConfigError(f"can't write {home.path} ({error.strerror}); choose another --home.") from error
    print(f"version {version} in {stages} stages: go on with `swarmd start --resume --home {printable(home.path)}`")
    return 0


def _start(options: StartOptions, home: Home, *, debug: bool, log_json: bool) -> int:
    """Checks everything that can be checked at once, takes the home, and runs the daemon until it is done."""
    check_options(options)
    run, text, told = _run_to_found(options, home)
    remembered = None if run or options.bootstrap or options.mdns else home.remembered()
    if not (run or options.bootstrap or options.mdns or options.idle or remembered):
        check_can_find(home)
    node = plan_node(options, home, remembered, stages=run.model.stages if run else None)
    if text is not None:
        node = dataclasses.replace(node, data=text.source, tokenizer=text.tokenizer)
    with home.locked():
        from swarmd.daemon.logs import NOTICE, configure_logging

        try:
            configure_logging(home.log, as_json=log_json, debug=debug)
        except OSError as error:
            raise ConfigError(f"can't write {home.log} ({error.strerror}); choose another --home.") from error
        import asyncio

        from swarmd.daemon.terminal import shown_as

        with shown_as("starting"):
            import uvloop

            from swarmd.daemon.process import run_daemon

            if told:
                log.log(NOTICE, "%s", told)
            loop = uvloop.new_event_loop()  # not closed: that waits for threads that nothing can end; the process can
            asyncio.set_event_loop(loop)
            return loop.run_until_complete(run_daemon(node, run, idle=options.idle and remembered is None))


def check_can_find(home: Home) -> None:
    """Whether a home knows by itself where to look for its run. Raises ConfigError."""
    if (known := home.remembered_run()) is None:
        raise ConfigError(
            "say what to do: --model NAME founds a run, --bootstrap MULTIADDR joins one, "
            "--mdns looks for one on the local network, --idle waits for `swarmctl join`."
        )
    if not known.known:
        raise ConfigError(
            f"{home.path} has served run {known.fingerprint} and knows no other peer of it: add --resume to go on from "
            "its checkpoints, or --bootstrap MULTIADDR to join others."
        )


def _run_to_found(options: StartOptions, home: Home) -> "tuple[RunConfig | None, LocalText | None, str]":
    """The run to found or go on with, None if there is one to join; where `--model` has its text; and a word about it.
    Raises ConfigError.
    """
    run, text = load_run(options), None
    if run is not None:
        from swarmd.daemon.text import as_known, take_local

        run, text = take_local(run)
    if not options.resume or options.bootstrap:
        return run, text, ""
    from swarmd.daemon.prolonging import plan_resumed

    def load(steps: int | None) -> RunConfig | None:
        written = load_run(dataclasses.replace(options, steps=steps))
        return None if written is None else as_known(written, home)

    run, told = plan_resumed(home, load, options.steps)
    return run, text, told


def check_options(options: StartOptions) -> None:
    """Refuses options that contradict each other or can't be right. Raises ConfigError."""
    given = [name for name, value in (("--model", options.model), ("--bootstrap", options.bootstrap)) if value]
    if len(given) > 1:
        raise ConfigError("give --model to found a run or --bootstrap to join one, not both.")
    given += ["--mdns"] * options.mdns + ["--resume"] * options.resume + ["--wait"] * (options.wait_s is not None)
    if options.idle and given:
        raise ConfigError(f"--idle waits for `swarmctl join`; leave it out to use {given[0]}.")
    if options.gpu is not None and options.device is not None:
        raise ConfigError("give --gpu or --device, not both.")
    resumes = options.resume and not options.bootstrap
    for name, value in (("--steps", None if resumes else options.steps), ("--stages", options.stages)):
        if value is not None and options.model is None:
            more = ", or with --resume where it is founded again" if name == "--steps" else ""
            raise ConfigError(f"{name} belongs to the run, so give it with --model where the run is founded{more}.")
    for address in options.bootstrap:
        if not address.startswith("/") or "/p2p/" not in address:
            raise ConfigError(f"--bootstrap {address} is not the address of a peer; it looks like {PEER_ID_EXAMPLE}.")
    for address in options.listen:
        if not address.startswith("/"):
            raise ConfigError(f"--listen {address} is not a multiaddr; one looks like /ip4/0.0.0.0/tcp/4001.")
    for address in options.announce:
        if not address.startswith("/"):
            raise ConfigError(f"--announce {address} is not a multiaddr; one looks like /ip4/203.0.113.5/tcp/4001.")


def load_run(options: StartOptions) -> RunConfig | None:
    """The run to found, None without --model. Raises ConfigError."""
    if options.model is None:
        return None
    from swarmd import settings

    run = settings.load_run(options.model)
    return settings.with_overrides(
        run, steps=options.steps, stages=options.stages, data=options.data, tokenizer=options.tokenizer
    )


def plan_node(options: StartOptions, home: Home, remembered: Remembered | None, *, stages: int | None) -> NodeConfig:
    """This daemon's own settings. Raises ConfigError.

    A remembered join gives only the stage here: the daemon reads its address itself, and tries it more patiently than
    one that a person waits for.
    """
    defaults = NodeConfig(home=str(home.path))
    limits, patience = defaults.limits, options.stage_lost_timeout_s
    if patience is not None:
        limits = dataclasses.replace(limits, stage_lost_timeout_s=patience)
    if options.final_copies_timeout_s is not None:
        limits = dataclasses.replace(limits, final_copies_timeout_s=options.final_copies_timeout_s)
    if options.data_limit_gb is not None:
        limits = dataclasses.replace(limits, stream_bytes=int(options.data_limit_gb * 1e9))
    return NodeConfig(
        home=str(home.path),
        device=_device(options),
        listen=options.listen or defaults.listen,
        announce=options.announce,
        bootstrap=options.bootstrap,
        stage=_stage(options.stage, stages) if options.stage else (remembered.stage if remembered else None),
        data=None if options.model else options.data,  # with --model they are of the run
        tokenizer=None if options.model else options.tokenizer,
        mdns=options.mdns,
        threads=options.threads,
        drain_s=defaults.drain_s if options.drain_s is None else options.drain_s,
        spot_file=options.spot_file,
        spot_command=options.spot_command,
        spot_interval_s=defaults.spot_interval_s if options.spot_interval_s is None else options.spot_interval_s,
        spot_notice_s=defaults.spot_notice_s if options.spot_notice_s is None else options.spot_notice_s,
        found_after_s=defaults.found_after_s if options.found_after_s is None else options.found_after_s,
        wait_s=options.wait_s,
        service=bool(os.environ.get("NOTIFY_SOCKET")),  # the unit's manager awaits word of this process
        resume=options.resume,
        limits=limits,
    )


def _device(options: StartOptions) -> str:
    if options.gpu is not None:
        return f"cuda:{options.gpu}"
    device = options.device or "cpu"
    kind, _, number = device.partition(":")
    if device != "cpu" and device != "cuda" and not (kind == "cuda" and number.isdecimal()):
        raise ConfigError(f"--device {device} is not known; use cpu or cuda:N.")
    return "cuda:0" if device == "cuda" else device


def _stage(text: str, stages: int | None) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal():
        raise ConfigError(f"--stage {text} is not a stage; use a number from 0, or auto.")
    if stages is not None and int(text) >= stages:
        raise ConfigError(f"--stage {text} does not exist; this run has stages 0 to {stages - 1}.")
    return int(text)


def _reported(action: Callable[[], int], debug: bool) -> int:
    """Runs a command; whatever goes wrong becomes one sentence on stderr and an exit code."""
    try:
        return action()
    except KeyboardInterrupt:
        return _say("interrupted.", EXIT_FAILED)
    except BrokenPipeError:
        return EXIT_FAILED  # the reader of our output has gone, as with `| head`
    except Exception as error:  # noqa: BLE001 - the one place where a failure becomes a clean end
        if debug:
            print(printable_lines(traceback.format_exc()), file=sys.stderr)
        known = _known_trouble(error)
        sentence = str(known) if known else f"failed: {type(error).__name__}: {error} (--debug shows where)."
        _note_in_log(sentence, None if known else error)
        return _say(sentence, EXIT_USER if isinstance(known, ConfigError | ControlError) else EXIT_FAILED)


def _note_in_log(sentence: str, error: Exception | None) -> None:
    """Puts the end of the daemon into its log too, once there is one; the terminal gets its sentence from `_say`."""
    if logging.getLogger().handlers:
        from swarmd.daemon.logs import FILE_ONLY

        logging.getLogger(__name__).critical(sentence, exc_info=error, extra=FILE_ONLY)


def _known_trouble(error: BaseException) -> SwarmError | None:
    """The trouble of ours in an exception or in a task group's bundle of them; what the user can mend comes first."""
    if isinstance(error, SwarmError):
        return error
    if isinstance(error, OSError) and error.errno in FULL:
        where = f" for {error.filename}" if error.filename else ""
        return ConfigError(f"{str(error.strerror).lower()}{where}; free some, or choose another --home.")
    if not isinstance(error, BaseExceptionGroup):
        return None
    found = [known for known in map(_known_trouble, error.exceptions) if known is not None]
    if len(found) < len(error.exceptions):
        return None  # something else failed too; that is what must be shown
    return min(found, key=lambda known: not isinstance(known, ConfigError | ControlError))


def _warn(sentence: str) -> None:
    print(f"swarmd: {printable(sentence)}", file=sys.stderr, flush=True)


def _say(sentence: str, code: int) -> int:
    print(f"swarmd: {printable(sentence)}", file=sys.stderr)
    return code


def run_command_line(arguments: list[str]) -> int:
    """Parses and runs; returns the exit code. A mistake in the arguments is one sentence, too."""
    try:
        result: Any = app(arguments, prog_name="swarmd", standalone_mode=False)
    except typer.TyperException as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message())
            return EXIT_USER
        sentence = " ".join(error.format_message().split())
        return _say(f"{sentence.rstrip('.')}; see `swarmd --help`.", EXIT_USER)
    except typer.Abort:
        return _say("interrupted.", EXIT_FAILED)
    return result if isinstance(result, int) else 0


def main() -> None:
    """Entry point of the command that the first release installed."""
    from swarmd.__main__ import main as begin

    begin()
