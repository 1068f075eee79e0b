"""The options that `swarmd` and `swarmctl` share."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from swarmctl.app import app as swarmctl_app
from swarmd import __version__
from swarmd.cli.main import app as swarmd_app

APPS = {"swarmd": swarmd_app, "swarmctl": swarmctl_app}


def run(program: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **environment},
    )


def below(command: Any, path: tuple[str, ...]) -> list[tuple[tuple[str, ...], Any]]:
    """A command and all below it, with their words."""
    found = [(path, command)]
    for name, each in getattr(command, "commands", {}).items():
        found += below(each, (*path, name))
    return found


COMMANDS = [it for program, app in APPS.items() for it in below(typer.main.get_command(app), (program,))]


@pytest.mark.parametrize("program", APPS)
@pytest.mark.parametrize("option", ["-V", "--version"])
def test_the_version(program: str, option: str) -> None:
    done = run(program, option)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{program} {__version__}\n", "")


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=lambda it: " ".join(it) if isinstance(it, tuple) else "")
def test_every_command_has_help_and_debug(path: tuple[str, ...], command: Any) -> None:
    from contextlib import redirect_stdout
    from io import StringIO

    shown = {}
    for option in ("-h", "--help"):
        with redirect_stdout(out := StringIO()):
            APPS[path[0]]([*path[1:], option], prog_name=path[0], standalone_mode=False)
        shown[option] = out.getvalue()
    assert shown["-h"] == shown["--help"]
    assert shown["-h"].startswith(f"Usage: {' '.join(path)}")
    options = {name for parameter in command.params for name in parameter.opts}
    assert "--debug" in options or getattr(command, "commands", {}), "a command that does something shows tracebacks"


@pytest.mark.parametrize(
    "arguments",
    [
        ("swarmd", "--debug", "start"),
        ("swarmd", "start", "--debug"),
        ("swarmctl", "--debug", "status"),
        ("swarmctl", "status", "--debug"),
        ("swarmctl", "plan", "--debug", "--model", "tinny", "--peers", "3xT4"),
    ],
    ids=" ".join,
)
def test_debug_shows_tracebacks_wherever_it_stands(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    shown = run(*arguments, SWARMD_HOME=str(tmp_path))
    assert shown.returncode == 2
    assert "Traceback" in shown.stderr
    without = run(*(word for word in arguments if word != "--debug"), SWARMD_HOME=str(tmp_path))
    assert without.returncode == 2
    assert without.stderr.count("\n") == 1
