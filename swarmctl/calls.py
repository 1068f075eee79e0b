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
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from swarmd import exits
from swarmd.command_line import debugging, say
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
    wide: bool,
    ask: Callable[["Client"], Any],
    table: Callable[[Any], "RenderableType"],
) -> int:
    """Asks the daemon and prints the answer: the JSON as it came, or a table."""

    def action() -> int:
        content = ask(client_of(context, home))
        if as_json:
            print(json.dumps(content))
        else:
            from swarmd import screen

            screen.show(table(content), wide=wide)
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


def watch(context: typer.Context, home: Path | None, as_json: bool) -> int:
    """Shows the status again and again, until Ctrl-C: on a terminal in place, elsewhere as lines."""

    def action() -> int:
        client = client_of(context, home)
        with contextlib.suppress(KeyboardInterrupt):
            if as_json or not sys.stdout.isatty():
                _say_again(client, as_json)
            else:
                _renew(client)
        return 0

    return reported(context, action)


def _say_again(client: "Client", as_json: bool) -> NoReturn:
    """Prints the status as a line, or as an object of JSON, for each look."""
    from swarmctl.client import parse_status
    from swarmd.live_line import live_line

    while True:
        status = client.status()
        print(json.dumps(status) if as_json else live_line(parse_status(status)), flush=True)
        time.sleep(WATCH_INTERVAL_S)


def _renew(client: "Client") -> NoReturn:
    """Shows the status in place."""
    from rich.live import Live

    from swarmctl.client import parse_status
    from swarmctl.render import render_status
    from swarmd.layout import Folded
    from swarmd.screen import console

    with Live(console=console(), auto_refresh=False) as live:
        while True:
            live.update(Folded(render_status(parse_status(client.status()))), refresh=True)
            time.sleep(WATCH_INTERVAL_S)


def client_of(context: typer.Context, home: Path | None) -> "Client":
    """A client of the daemon whose home was given to the command, or before it, or of the one that is found."""
    from swarmctl.client import Client
    from swarmctl.homes import find_home, home_of

    if home is None and context.obj["home"] is None:
        context.obj["home"], of_a_service = find_home()
        if of_a_service:
            _say(f"speaking to the service at {context.obj['home']}.")
    return Client(home_of(home or context.obj["home"]), patience=_say)


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
    except Exception as error:  # noqa: BLE001 - the one place where a failure becomes a clean end
        if debugging(context):
            print(printable_lines(traceback.format_exc()), file=sys.stderr)
        known = isinstance(error, SwarmError)
        _say(str(error) if known else f"failed: {type(error).__name__}: {error} (--debug shows where).")
        return exits.MISTAKE if known else exits.FAILED
