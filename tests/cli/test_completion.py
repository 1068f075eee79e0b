"""Completion for shells: the scripts that are installed, what is offered, and real shells at a terminal, where they are
installed.
"""

import contextlib
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from swarmctl import app as swarmctl_app
from swarmd.settings import preset_names
from swarmd.sim.planner.costs import find_wire
from tests.house import ROOT

SHELLS = ("bash", "zsh", "fish")
PROGRAMS = ("swarmd", "swarmctl")
PATIENCE_S = 30.0  # of a shell that starts two processes for each completion
ESCAPES = re.compile(r"\x1b(\][^\x07\x1b]*(\x07|\x1b\\)|[\[(][0-9;?<>=]*[a-zA-Z]|[=>])|\x08|\r")


def run(program: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **environment},
    )


def offered(shell: str, typed: str) -> str:
    """What a program answers its completion script."""
    program = typed.split(maxsplit=1)[0]
    asked = {
        "bash": {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - (not typed.endswith(" ")))},
        "zsh": {"_TYPER_COMPLETE_ARGS": typed},
        "fish": {"_TYPER_COMPLETE_ARGS": typed, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }
    done = run(program, **{f"_{program.upper()}_COMPLETE": f"complete_{shell}"}, **asked[shell])
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_it_is_installed(tmp_path: Path, program: str, shell: str) -> None:
    """As if asked from within that shell."""
    env = {"HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = run(program, "--install-completion", shell, **env)
    assert done.returncode == 0, done.stderr
    assert shell in done.stdout
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    (script,) = (it for it in map(Path.read_text, written) if f"_{program.upper()}_COMPLETE=complete_{shell}" in it)
    assert ("compstate" in script) == (shell == "zsh"), "it completes when it is loaded"


@pytest.mark.parametrize(
    ("typed", "word"),
    [
        ("swarmctl sta", "status"),
        ("swarmctl status --wa", "--watch"),
        ("swarmd st", "start"),
        ("swarmd service ins", "install"),
        ("swarmd start --model ti", "tiny"),
        ("swarmctl plan --wire bo", "bottleneck-2"),
    ],
)
def test_it_knows_commands_options_and_values(typed: str, word: str) -> None:
    for shell in SHELLS:
        assert word in offered(shell, typed)


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_option_that_answers_at_once_says_nothing_to_a_shell(program: str) -> None:
    for option in ("--version", "--help"):
        words = offered("fish", f"{program} {option} ").splitlines()
        assert words
        assert all("\t" in line for line in words), "commands with their help, and nothing else"


def test_what_is_offered_for_values_is_known() -> None:
    assert offered("bash", "swarmd start --model ").split() == list(preset_names())
    assert [find_wire(name).name for name in swarmctl_app._WIRES] == list(swarmctl_app._WIRES)
    from swarmctl.plan import DTYPES

    assert swarmctl_app._DTYPES == DTYPES


class Typist:
    """Someone at a terminal with a shell."""

    def __init__(self, terminal: int) -> None:
        self._terminal, self._shown = terminal, ""

    def type(self, keys: str, until: str) -> None:
        """Types, and waits until something is shown after it. Fails if it isn't in time."""
        self._shown = ""
        os.write(self._terminal, keys.encode())
        end = time.monotonic() + PATIENCE_S
        while until not in (plain := ESCAPES.sub("", self._shown)):
            assert time.monotonic() < end, f"{until!r} was not shown after {keys!r}, but {plain!r}"
            if select.select([self._terminal], [], [], 0.1)[0]:
                came = os.read(self._terminal, 65_536).decode(errors="replace")
                self._shown += came
                if "\x1b[c" in came or "\x1b[0c" in came:  # fish asks the terminal what it is
                    os.write(self._terminal, b"\x1b[?62c")


@contextlib.contextmanager
def at_terminal(shell: str, home: Path) -> Iterator[Typist]:
    """An interactive shell in an empty home, with both programs on its path."""
    path = f"{home / 'bin'}:/usr/bin:/bin"
    env = {"HOME": str(home), "PATH": path, "TERM": "xterm", "LANG": "C.UTF-8", "PYTHONPATH": str(ROOT)}
    program = shutil.which(shell)
    assert program is not None
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(home)
        os.execve(program, [program, "-i"], env)
    try:
        yield Typist(terminal)
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        os.close(terminal)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A user's home, where the programs are."""
    (tmp_path / "bin").mkdir()
    (tmp_path / ".zshrc").touch()  # else zsh asks what it should set up
    for program in PROGRAMS:
        path = tmp_path / "bin" / program
        path.write_text(f'#!/bin/sh\nexec {sys.executable} -m {program} "$@"\n')
        path.chmod(0o755)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    "shell", [pytest.param(it, marks=pytest.mark.skipif(not shutil.which(it), reason=f"no {it}")) for it in SHELLS]
)
def test_a_shell_completes_what_is_typed(home: Path, shell: str) -> None:
    """As the README says: installed from within the shell, there in the next one."""
    with at_terminal(shell, home) as typist:
        for program in PROGRAMS:
            typist.type(f"{program} --install-completion\n", f"{shell} completion installed in")
    with at_terminal(shell, home) as typist:
        typist.type("swarmctl que\t", "swarmctl queues ")
        typist.type("--js\t", "--json")
        typist.type("\x15swarmctl status --h\t\t", "--home" if shell == "bash" else "The daemon's home directory.")
        typist.type("\x15swarmd start --model ti\t", "--model tiny")
        typist.type("\x15swarmd service \t\t", "uninstall")
        typist.type("\x15swarmd start --data ./bi\t", "./bin")
