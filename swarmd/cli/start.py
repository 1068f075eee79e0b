"""`swarmd start`: options checked and turned into a NodeConfig and a RunConfig, with which a daemon is run.

What the daemon does with them is `daemon/process.py`.
"""

import dataclasses
import logging
import math
import os
from typing import TYPE_CHECKING, TypeVar

from swarmd.cli import options as given
from swarmd.cli.options import ALL, OPTION_OF, StartOptions, check_options, parse_endpoint
from swarmd.cli.reporting import reported
from swarmd.config import ComputeConfig, NodeConfig, RunConfig
from swarmd.daemon.home import Home, default_home
from swarmd.daemon.remembered import Remembered
from swarmd.device_names import parse_device
from swarmd.errors import ConfigError
from swarmd.memory import grow_segments

if TYPE_CHECKING:
    from swarmd.daemon.text import LocalText

Number = TypeVar("Number", int, float)

log = logging.getLogger(__name__)

START_EXAMPLES = """
\b
Examples:
  swarmd start --model tiny --device cpu           found a run of a preset; prints its multiaddr
  swarmd start --bootstrap MULTIADDR --gpu 0       join it: its settings come from that peer
  swarmd start --bootstrap MULTIADDR --gpu all     the same with a daemon for each card of this machine
  swarmd start --model my-run.toml --stage 0       found a run from a file, and hold stage 0
  swarmd start --idle                              wait for `swarmctl join --bootstrap MULTIADDR`
  swarmd start                                     do again what was last joined
  swarmd start --spot-file /run/spot-notice        drain and end once that file appears
  swarmd start --resume                            found the run of this home again, from its peers' checkpoints
  swarmd start --resume --steps 60                 the same, and let it go on to 60 steps in all
"""


def start(
    model: given.Model = None,
    bootstrap: given.Bootstrap = None,
    mdns: given.Mdns = False,
    idle: given.Idle = False,
    gpu: given.Gpu = None,
    device: given.Device = None,
    stage: given.Stage = None,
    listen: given.Listen = None,
    announce: given.Announce = None,
    data: given.Data = None,
    tokenizer: given.Tokenizer = None,
    data_limit_gb: given.DataLimit = None,
    home: given.HomePath = None,
    steps: given.Steps = None,
    stages: given.Stages = None,
    threads: given.Threads = 0,
    compute_dtype: given.ComputeDtypeName = "auto",
    recompute: given.RecomputeName = "auto",
    drain_timeout: given.DrainTimeout = None,
    spot_file: given.SpotFile = None,
    spot_command: given.SpotCommand = None,
    spot_interval: given.SpotInterval = None,
    spot_notice: given.SpotNotice = None,
    resume: given.Resume = False,
    stage_lost_timeout: given.StageLostTimeout = None,
    final_copies_timeout: given.FinalCopiesTimeout = None,
    found_after: given.FoundAfter = None,
    wait: given.Wait = None,
    metrics: given.Metrics = None,
    debug: given.Verbose = False,
    log_json: given.LogJson = False,
) -> int:
    """Start a daemon that holds one stage of a run and trains it with its peers."""
    options = StartOptions(
        model=model,
        bootstrap=tuple(bootstrap or ()),
        mdns=mdns,
        idle=idle,
        gpu=gpu,
        device=device,
        stage=stage,
        listen=tuple(listen or ()),
        announce=tuple(announce or ()),
        data=data,
        tokenizer=tokenizer,
        data_limit_gb=data_limit_gb,
        steps=steps,
        stages=stages,
        threads=threads,
        compute_dtype=compute_dtype,
        recompute=recompute,
        drain_s=drain_timeout,
        spot_file=spot_file,
        spot_command=spot_command,
        spot_interval_s=spot_interval,
        spot_notice_s=spot_notice,
        resume=resume,
        stage_lost_timeout_s=stage_lost_timeout,
        final_copies_timeout_s=final_copies_timeout,
        found_after_s=found_after,
        wait_s=wait,
        metrics=metrics,
    )
    return reported(lambda: _run(options, Home(home or default_home()), debug=debug, log_json=log_json), debug=debug)


def _run(options: StartOptions, home: Home, *, debug: bool, log_json: bool) -> int:
    """Checks everything that can be checked at once, takes the home, and runs the daemon until it is done."""
    check_options(options)
    if options.gpu == ALL:
        from swarmd.cli.every_card import run_every_card

        return run_every_card(options, home.path, debug=debug, log_json=log_json)
    run, text, told = _run_to_found(options, home)
    remembered = None if run or options.bootstrap or options.mdns else home.remembered()
    if not (run or options.bootstrap or options.mdns or options.idle or remembered):
        check_can_find(home)
    node = plan_node(options, home, remembered, stages=run.model.stages if run else None)
    if text is not None:
        node = dataclasses.replace(node, data=text.source, tokenizer=text.tokenizer)
    if node.device != "cpu":
        grow_segments()
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
    """Raises ConfigError unless a home knows by itself where to look for its run."""
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
    """The run to found or go on with (None if there is one to join), its text on this machine where `--model` names
    one, and a sentence if the run is prolonged. Raises ConfigError.
    """
    run, text = load_run(options), None
    if run is not None:
        from swarmd.daemon.text import take_local

        run, text = take_local(run)
    if not options.resume or options.bootstrap:
        return run, text, ""
    from swarmd.daemon.prolonging import plan_resumed
    from swarmd.daemon.text import as_known

    def load(steps: int | None) -> RunConfig | None:
        written = load_run(dataclasses.replace(options, steps=steps))
        return None if written is None else as_known(written, home)

    run, told = plan_resumed(home, load, options.steps)
    return run, text, told


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
    from swarmd import settings

    defaults = NodeConfig(home=str(home.path))
    stream_bytes = None if options.data_limit_gb is None else _bytes(options.data_limit_gb)
    limits = dataclasses.replace(
        defaults.limits,
        stage_lost_timeout_s=_chosen(options.stage_lost_timeout_s, defaults.limits.stage_lost_timeout_s),
        final_copies_timeout_s=_chosen(options.final_copies_timeout_s, defaults.limits.final_copies_timeout_s),
        stream_bytes=_chosen(stream_bytes, defaults.limits.stream_bytes),
    )
    node = NodeConfig(
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
        drain_s=_chosen(options.drain_s, defaults.drain_s),
        spot_file=options.spot_file,
        spot_command=options.spot_command,
        spot_interval_s=_chosen(options.spot_interval_s, defaults.spot_interval_s),
        spot_notice_s=_chosen(options.spot_notice_s, defaults.spot_notice_s),
        found_after_s=_chosen(options.found_after_s, defaults.found_after_s),
        wait_s=options.wait_s,
        metrics=parse_endpoint(options.metrics) if options.metrics else None,
        service=bool(os.environ.get("NOTIFY_SOCKET")),  # the unit's manager awaits word of this process
        resume=options.resume,
        limits=limits,
        compute=ComputeConfig(options.compute_dtype, options.recompute),
    )
    settings.check_node(node, OPTION_OF)
    return node


def _bytes(gigabytes: float) -> int:
    if not math.isfinite(gigabytes):
        raise ConfigError(f"--data-limit {gigabytes} is no size of a disk; give a number of GB.")
    return int(gigabytes * 1e9)


def _chosen(given: Number | None, default: Number) -> Number:
    return default if given is None else given


def _device(options: StartOptions) -> str:
    if options.gpu is not None:
        return f"cuda:{options.gpu}"
    number = parse_device(options.device or "cpu")
    return "cpu" if number is None else f"cuda:{number}"


def _stage(text: str, stages: int | None) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal():
        raise ConfigError(f"--stage {text} is not a stage; use a number from 0, or auto.")
    if stages is not None and int(text) >= stages:
        raise ConfigError(f"--stage {text} does not exist; this run has stages 0 to {stages - 1}.")
    return int(text)
