"""Calls of a command to the daemon: a question whose answer is printed, an order whose progress is shown.

Relies on `client` for the talking and on `render` for tables. A failure becomes one sentence and an exit code.
"""

import contextlib
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from swarmd import exits
from swarmd.command_line import say
from swarmd.errors import SwarmError
from swarmd.printable import printable_lines

if TYPE_CHECKING:
    from rich.console import RenderableType

    from swarmctl.client import Client, Told

WATCH_INTERVAL_S = 1.0  # slower than a person reads, faster than figures change


def show(
    context: typer.Context,
    home: Path | None,
    as_json: bool,
    ask: Callable[["Client"], Any],
    table: Callable[[Any], "RenderableType"],
) -> int:
    """Asks the daemon and prints the answer: the JSON as it came, or a table."""

    def action() -> int:
        content = ask(client_of(context, home))
        if as_json:
            print(json.dumps(content))
        else:
            from swarmctl.render import console

            console().print(table(content), soft_wrap=False)
        return 0

    return reported(context, action)


def tell(
    context: typer.Context,
    home: Path | None,
    as_json: bool,
    command: Callable[["Client", "Told"], Any],
    sentence: Callable[[Any], str],
) -> int:
    """Sends a command to the daemon, shows its progress on stderr and prints the result on stdout."""

    def action() -> int:
        from swarmctl.client import Progress
        from swarmctl.render import ProgressView

        with ProgressView() as view:

            def told(progress: Progress) -> None:
                view.show(progress.doing, progress.done, progress.total)

            content = command(client_of(context, home), told)
        print(json.dumps(content) if as_json else printable_lines(sentence(content)))
        return 0

    return reported(context, action)


def watch(context: typer.Context, home: Path | None) -> int:
    """Shows the status again and again, until Ctrl-C."""
    return reported(context, lambda: _watch(client_of(context, home)))


def _watch(client: "Client") -> int:
    from rich.live import Live

    from swarmctl.client import parse_status
    from swarmctl.render import console, render_status

    with Live(console=console(), auto_refresh=False) as live, contextlib.suppress(KeyboardInterrupt):
        while True:
            live.update(render_status(parse_status(client.status())), refresh=True)
            time.sleep(WATCH_INTERVAL_S)
    return 0


def client_of(context: typer.Context, home: Path | None) -> "Client":
    """A client of the daemon whose home was given to the command, or before it, or of the default one."""
    from swarmctl.client import Client, default_home

    return Client(home or context.obj["home"] or default_home(), patience=_say)


def _say(sentence: str) -> None:
    say("swarmctl", sentence)


def reported(context: typer.Context, action: Callable[[], int]) -> int:
    """Runs a command and returns its exit code; a failure becomes one sentence on stderr."""
    try:
        return action()
    except KeyboardInterrupt:
        _say("interrupted.")
        return exits.FAILED
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone, as with `| head`; there is nobody to tell
        return exits.FAILED
    except SwarmError as error:
        if context.obj["debug"]:
            print(printable_lines(traceback.format_exc()), file=sys.stderr)
        _say(str(error))
        return exits.MISTAKE
