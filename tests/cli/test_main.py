"""The `swarmd` command as a person meets it, in real processes and by its entry point."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from swarmd import __version__
from swarmd.cli.main import run_command_line
from swarmd.daemon.home import Home

BOOTSTRAP = "/ip4/127.0.0.1/tcp/4001/p2p/12D3KooWx"


def swarmd(*arguments: str, home: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SWARMD_HOME": str(home)} if home else dict(os.environ)
    return subprocess.run(
        [sys.executable, "-m", "swarmd", *arguments], capture_output=True, text=True, check=False, env=environment
    )


def test_version() -> None:
    done = swarmd("--version")
    assert (done.returncode, done.stdout) == (0, f"swarmd {__version__}\n")


@pytest.mark.parametrize("command", ["start", "demo"])
def test_help_has_examples(command: str) -> None:
    done = swarmd(command, "--help")
    assert done.returncode == 0
    assert f"swarmd {command}" in done.stdout.split("Examples:")[1]


MISTAKES = [
    (["start"], "say what to do"),
    (["start", "--model", "tiny", "--bootstrap", BOOTSTRAP], "not both"),
    (["start", "--idle", "--model", "tiny"], "leave it out to use --model"),
    (["start", "--idle", "--mdns"], "leave it out to use --mdns"),
    (["start", "--idle", "--wait", "5"], "leave it out to use --wait"),
    (["start", "--idle", "--gpu", "0", "--device", "cpu"], "not both"),
    (["start", "--idle", "--device", "tpu"], "use cpu or cuda:N"),
    (["start", "--idle", "--device", "cuda:x"], "use cpu or cuda:N"),
    (["start", "--idle", "--stage", "last"], "a number from 0, or auto"),
    (["start", "--model", "tiny", "--stage", "3"], "this run has stages 0 to 2"),
    (["start", "--idle", "--steps", "5"], "give it with --model"),
    (["start", "--bootstrap", BOOTSTRAP, "--stages", "2"], "give it with --model"),
    (["start", "--bootstrap", "10.0.0.1:4001"], "not the address of a peer"),
    (["start", "--bootstrap", "/ip4/10.0.0.1/tcp/4001"], "not the address of a peer"),
    (["start", "--idle", "--listen", "4001"], "not a multiaddr"),
    (["start", "--idle", "--announce", "example.org:4001"], "--announce example.org:4001 is not a multiaddr"),
    (["start", "--model", "tinny"], "tinny"),
    (["start", "--model", "tiny", "--gpu", "-1"], "--gpu"),
    (["start", "--nope"], "--nope"),
    (["demo", "--peers", "1"], "give --peers 3"),
    (["demo", "--model", "tinny"], "tinny"),
    (["nope"], "nope"),
    (["start", "--model", "tiny", "--data", ""], "nothing is given after --data,"),
    (["start", "--home=", "--idle"], "nothing is given after --home=,"),
    (["start", "--bootstrap", BOOTSTRAP, "--tokenizer="], "nothing is given after --tokenizer=,"),
    (["reshape", "--stages", "2", "--home", "x", ""], "nothing is given after x,"),
    (["", "start"], "nothing is given after the command,"),
]


@pytest.mark.parametrize(
    ("arguments", "sentence"), MISTAKES, ids=lambda value: "" if isinstance(value, str) else " ".join(value)
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SWARMD_HOME", str(tmp_path / "home"))
    code = run_command_line(arguments)
    captured = capsys.readouterr()
    assert (code, captured.out) == (2, "")
    assert captured.err.startswith("swarmd: ")
    assert captured.err.count("\n") == 1
    assert sentence in captured.err
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    "arguments", [("--model", "tiny", "--data"), ("--bootstrap", BOOTSTRAP, "--tokenizer")], ids=" ".join
)
def test_a_name_that_is_not_utf_8_is_said_with_what_to_do(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = swarmd("start", *arguments, os.fsdecode(b"latin-\xe9"), home=tmp_path)
    assert (done.returncode, done.stderr) == (
        2,
        f"swarmd: {arguments[-1]} latin-\\udce9 is a name that isn't UTF-8; give it one that is, as with ln -s.\n",
    )


def test_a_mistake_in_a_real_process_shows_no_traceback_unless_asked(tmp_path: Path) -> None:
    done = swarmd("start", home=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("swarmd: say what to do")
    assert "Traceback" in swarmd("start", "--debug", home=tmp_path).stderr


def test_a_second_daemon_on_the_same_home_is_refused(tmp_path: Path) -> None:
    with Home(tmp_path).locked():
        done = swarmd("start", "--idle", home=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"already uses {tmp_path}" in done.stderr
    assert not (tmp_path / "swarmd.log").exists()


def test_a_damaged_memory_is_named(tmp_path: Path) -> None:
    (tmp_path / "node.json").write_text("{")
    done = swarmd("start", home=tmp_path)
    assert done.returncode == 2
    assert str(tmp_path / "node.json") in done.stderr
