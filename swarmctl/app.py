"""The command line of `swarmctl`: look at a daemon and tell it what to do, through its control socket.

Relies on `calls` for the talking and on `render` for tables; it computes nothing itself. It must start fast, so rich
and the client are imported when a command runs, and torch, libp2p and trio never.
"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from swarmctl import calls
from swarmd import command_line, completion
from swarmd.printable import counted, printable

if TYPE_CHECKING:
    from rich.console import RenderableType

app = typer.Typer(
    context_settings=command_line.SETTINGS,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Look at a swarmd daemon and tell it what to do.",
    epilog="""
\b
Examples:
  swarmctl status                                  the daemon in ~/.swarmd (or $SWARMD_HOME), or the one service
  swarmctl --home DIR peers                        who is in the swarm, as another daemon sees it
  swarmctl queues --json                           the microbatches it holds, for a program
  swarmctl join --bootstrap MULTIADDR              make an idle daemon join a swarm, now and after restarts
  swarmctl switch 2                                make it serve stage 2
  swarmctl pause | resume                          no more work for now, and work again
  swarmctl drain                                   end it without losing anything; `leave` ends it at once
""",
)

_SWITCH_EXAMPLES = """
\b
Examples:
  swarmctl switch 2                                returns once the daemon serves stage 2
  swarmctl switch 0 --json                         {"switched": true, "stage": 0}; progress on stderr
"""

_DRAIN_EXAMPLES = """
\b
Examples:
  swarmctl drain                                   within the bound that the daemon was started with
  swarmctl drain --timeout 25                      within 25 seconds: a spot machine is about to go
"""

_PLAN_EXAMPLES = """
\b
Examples:
  swarmctl plan --model 13b-shared --peers '32xT4@200Mbps,4xA100@1Gbps' --rtt 50
  swarmctl plan --model 1b --peers '16xRTX3090@100/20Mbps$0.20' --quick
  swarmctl plan --model 13b-shared --peers 8xL4@500Mbps --price L4=0.70 --wire 4-bit --json
  swarmd profile --output laptop.json; swarmctl plan --model tiny --peers 6xlaptop.json --one-machine
"""

_WIRES = ("fp32", "fp16", "bf16", "int8", "int8-bnb", "4-bit", "bottleneck-2", "maxout-2")
_DTYPES = ("auto", "fp32", "bf16", "fp16")
"""What a shell offers for a plan; the simulator, which knows them, takes half a second to load."""

_Model = Annotated[
    str,
    typer.Option(metavar="NAME|FILE", help="What to train: a preset or a TOML file.", autocompletion=completion.preset),
]
_Wire = Annotated[
    str | None,
    typer.Option(
        metavar="CODEC",
        help="fp16, int8, 4-bit, bottleneck-2, ... Default: the run's.",
        autocompletion=completion.one_of(*_WIRES),
    ),
]
_Compute = Annotated[
    str,
    typer.Option(
        metavar="DTYPE",
        help="auto (what is fast on the device), fp32, bf16 or fp16.",
        autocompletion=completion.one_of(*_DTYPES),
    ),
]
_Home = Annotated[Path | None, typer.Option("--home", metavar="DIR", help="The daemon's home directory.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
_Wide = Annotated[bool, typer.Option("--wide", help="All columns, whatever the terminal's width.")]


@app.callback()
def _root(
    context: typer.Context,
    home: Annotated[
        Path | None,
        typer.Option(
            "--home",
            metavar="DIR",
            help="The daemon's home directory. Default: $SWARMD_HOME, ~/.swarmd, or the one service's.",
        ),
    ] = None,
    version: command_line.Version = False,
    debug: command_line.Debug = False,
) -> None:
    context.obj = {"home": home}


@app.command()
def status(
    context: typer.Context,
    home: _Home = None,
    as_json: _Json = False,
    wide: _Wide = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it again every second, until Ctrl-C; in a pipe as a line each.")
    ] = False,
    debug: command_line.Debug = False,
) -> int:
    """The daemon at a glance: state, stage, step, loss, speed, queues."""
    if watch:
        return calls.watch(context, home, as_json)

    def table(content: Any) -> "RenderableType":
        from swarmctl.client import parse_status
        from swarmctl.render import render_status

        return render_status(parse_status(content))

    return calls.show(context, home, as_json, wide, lambda client: client.status(), table)


@app.command()
def peers(
    context: typer.Context,
    home: _Home = None,
    as_json: _Json = False,
    wide: _Wide = False,
    debug: command_line.Debug = False,
) -> int:
    """Every peer that the daemon knows: stage, state, version, queues, speed."""

    def table(content: Any) -> "RenderableType":
        from swarmctl.client import parse_peers, parse_status
        from swarmctl.render import render_peers

        return render_peers(parse_peers(content), parse_status(calls.client_of(context, home).status()))

    return calls.show(context, home, as_json, wide, lambda client: client.peers(), table)


@app.command()
def queues(
    context: typer.Context,
    home: _Home = None,
    as_json: _Json = False,
    wide: _Wide = False,
    debug: command_line.Debug = False,
) -> int:
    """The microbatches that the daemon holds: where each came from, what it waits for, and why the device is idle."""

    def table(content: Any) -> "RenderableType":
        from swarmctl.client import parse_queues, parse_status
        from swarmctl.render import render_work

        return render_work(parse_queues(content), parse_status(calls.client_of(context, home).status()))

    return calls.show(context, home, as_json, wide, lambda client: client.queues(), table)


@app.command(epilog=_SWITCH_EXAMPLES)
def switch(
    context: typer.Context,
    stage: Annotated[int, typer.Argument(metavar="STAGE", min=0, help="The stage to serve, from 0.")],
    home: _Home = None,
    as_json: _Json = False,
    debug: command_line.Debug = False,
) -> int:
    """Have the daemon go to another stage: it fetches that one's state first, and never empties the one it leaves."""

    def sentence(content: Any) -> str:
        return f"serving stage {content['stage']}."

    return calls.tell(context, home, as_json, lambda client, told: client.switch(stage, told), sentence)


@app.command(epilog=_DRAIN_EXAMPLES)
def drain(
    context: typer.Context,
    timeout: Annotated[
        float | None, typer.Option(metavar="S", min=0.1, help="Bound. Default: the daemon's --drain-timeout.")
    ] = None,
    home: _Home = None,
    as_json: _Json = False,
    debug: command_line.Debug = False,
) -> int:
    """Have the daemon finish what it has, hand its gradients to another replica, and end."""

    def sentence(content: Any) -> str:
        lines = ["drained; the daemon ends."]
        if content["handed_over"]:
            lines.append(f"{counted(content['handed_over'], 'microbatch')} of the step went to {content['heir']}.")
        if content["lost"] or content["given_up"]:
            lines.append(f"{counted(content['lost'] + content['given_up'], 'microbatch')} must be done by others.")
        if content["stage_left_empty"]:
            lines.append("its stage is left empty: the swarm waits until another peer serves it.")
        return "\n".join(lines)

    return calls.tell(context, home, as_json, lambda client, told: client.drain(timeout, told), sentence)


@app.command()
def leave(context: typer.Context, home: _Home = None, as_json: _Json = False, debug: command_line.Debug = False) -> int:
    """Have the daemon say goodbye and end at once; what it had computed of the step is done again by others."""
    return calls.tell(context, home, as_json, lambda client, _: client.leave(), lambda _: "left; the daemon ends.")


@app.command()
def pause(context: typer.Context, home: _Home = None, as_json: _Json = False, debug: command_line.Debug = False) -> int:
    """Have the daemon take no more microbatches; it keeps its state, and takes each step with the others."""
    said = "paused; `swarmctl resume` lets it go on."
    return calls.tell(context, home, as_json, lambda client, _: client.pause(), lambda _: said)


@app.command()
def resume(
    context: typer.Context, home: _Home = None, as_json: _Json = False, debug: command_line.Debug = False
) -> int:
    """Have a paused daemon take microbatches again."""
    return calls.tell(context, home, as_json, lambda client, _: client.resume(), lambda _: "going on.")


@app.command()
def join(
    context: typer.Context,
    bootstrap: Annotated[str, typer.Option(metavar="MULTIADDR", help="Address of a peer of the swarm.")],
    home: _Home = None,
    as_json: _Json = False,
    debug: command_line.Debug = False,
) -> int:
    """Make an idle daemon join a swarm and remember it across restarts."""
    said = "joined; `swarmctl status` shows how it goes."
    return calls.tell(context, home, as_json, lambda client, told: client.join(bootstrap, told), lambda _: said)


@app.command("plan", epilog=_PLAN_EXAMPLES)
def plan_command(
    context: typer.Context,
    model: _Model,
    peers: Annotated[
        str, typer.Option(metavar="LIST", help="Count x device * pace @ bandwidth $ price per hour, with commas.")
    ],
    rtt: Annotated[float, typer.Option(metavar="MS", min=0.0, help="Round trip between peers.")] = 50.0,
    price: Annotated[
        list[str] | None, typer.Option(metavar="DEVICE=PRICE", help="Per hour and peer. Repeatable.")
    ] = None,
    wire: _Wire = None,
    compute: _Compute = "auto",
    stages: Annotated[int | None, typer.Option(metavar="S", min=1, help="Stages. Default: the run's.")] = None,
    steps: Annotated[int | None, typer.Option(metavar="N", min=1, help="Steps. Default: the run's.")] = None,
    one_machine: Annotated[bool, typer.Option("--one-machine", help="All peers share one profiled machine.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Only the plan itself, without what-ifs.")] = False,
    as_json: _Json = False,
    wide: _Wide = False,
    debug: command_line.Debug = False,
) -> int:
    """Simulate a swarm that you think of renting: speed, time, bottleneck, traffic, memory, cost."""

    def action() -> int:
        from dataclasses import asdict

        from swarmctl.plan import answer, render_plan
        from swarmd.screen import show

        def told(line: str) -> None:
            print(f"simulating: {printable(line)}", file=sys.stderr)

        plan = answer(
            model,
            peers,
            rtt_ms=rtt,
            prices=price or (),
            wire=wire,
            compute=compute,
            stages=stages,
            steps=steps,
            one_machine=one_machine,
            variants=not quick,
            on_progress=told,
        )
        if as_json:
            print(json.dumps({"simulated": True, **asdict(plan)}))
        else:
            show(render_plan(plan), wide=wide)
        return 0

    return calls.reported(context, action)


def run_command_line(arguments: list[str]) -> int:
    """Runs `swarmctl` with these arguments; returns the exit code."""
    return command_line.run(app, "swarmctl", arguments)
