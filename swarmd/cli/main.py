"""The command line of `swarmd`: its commands, and how they are run.

Everything heavy (uvloop, torch, libp2p, pydantic) is imported in the function that needs it, because `--help` and every
mistake should be answered at once.
"""

import typer

from swarmd import command_line
from swarmd.cli.service import service
from swarmd.cli.start import START_EXAMPLES, start
from swarmd.cli.tools import DEMO_EXAMPLES, PROFILE_EXAMPLES, demo, profile, reshape

app = typer.Typer(
    context_settings=command_line.SETTINGS,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Train one large model on many weak, scattered machines. `swarmd demo` shows a whole swarm on this one.",
)
app.command(epilog=START_EXAMPLES)(start)
app.command(epilog=DEMO_EXAMPLES)(demo)
app.command(epilog=PROFILE_EXAMPLES)(profile)
app.command()(reshape)
app.add_typer(service, name="service")


@app.callback()
def _root(version: command_line.Version = False, debug: command_line.Debug = False) -> None:
    pass


def run_command_line(arguments: list[str]) -> int:
    """Runs `swarmd` with these arguments; returns the exit code."""
    return command_line.run(app, "swarmd", arguments)
