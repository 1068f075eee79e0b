"""Options of `swarmd start`: each reaches its place, and together they become a node's settings."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from swarmd.cli import start
from swarmd.cli.main import run_command_line
from swarmd.cli.options import OPTION_OF, StartOptions, check_options
from swarmd.cli.start import plan_node
from swarmd.config import NodeConfig
from swarmd.daemon import logs, process
from swarmd.daemon.home import Home
from swarmd.daemon.remembered import Remembered
from swarmd.errors import ConfigError

BOOTSTRAP = "/ip4/127.0.0.1/tcp/4001/p2p/12D3KooWx"
GIVEN: dict[str, tuple[str | None, str, Any]] = {
    "--model": ("tiny", "model", "tiny"),
    "--bootstrap": ("/b", "bootstrap", ("/b",)),
    "--mdns": (None, "mdns", True),
    "--idle": (None, "idle", True),
    "--gpu": ("3", "gpu", "3"),
    "--device": ("cpu", "device", "cpu"),
    "--stage": ("2", "stage", "2"),
    "--listen": ("/l", "listen", ("/l",)),
    "--announce": ("/a", "announce", ("/a",)),
    "--data": ("d", "data", "d"),
    "--tokenizer": ("t", "tokenizer", "t"),
    "--data-limit": ("4.5", "data_limit_gb", 4.5),
    "--steps": ("5", "steps", 5),
    "--stages": ("6", "stages", 6),
    "--threads": ("7", "threads", 7),
    "--compute-dtype": ("fp16", "compute_dtype", "fp16"),
    "--recompute": ("block", "recompute", "block"),
    "--drain-timeout": ("8", "drain_s", 8.0),
    "--spot-file": ("f", "spot_file", "f"),
    "--spot-command": ("c", "spot_command", "c"),
    "--spot-interval": ("9", "spot_interval_s", 9.0),
    "--spot-notice": ("10", "spot_notice_s", 10.0),
    "--resume": (None, "resume", True),
    "--stage-lost-timeout": ("11", "stage_lost_timeout_s", 11.0),
    "--final-copies-timeout": ("12", "final_copies_timeout_s", 12.0),
    "--found-after": ("13", "found_after_s", 13.0),
    "--wait": ("14", "wait_s", 14.0),
    "--metrics": ("h:15", "metrics", "h:15"),
}
"""Of each option: a word, the field of StartOptions that it fills, and the value there."""


@pytest.mark.parametrize("option", GIVEN)
def test_each_option_fills_its_own_field(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[StartOptions] = []

    def keep(options: StartOptions, home: Home, *, debug: bool, log_json: bool) -> int:
        found.append(options)
        return 0

    monkeypatch.setattr(start, "_run", keep)
    word, field, value = GIVEN[option]
    assert run_command_line(["start", option, *([] if word is None else [word])]) == 0
    assert found == [dataclasses.replace(StartOptions(), **{field: value})]


def test_there_is_an_option_for_every_field() -> None:
    assert sorted(field for _, field, _ in GIVEN.values()) == sorted(it.name for it in dataclasses.fields(StartOptions))


def test_options_become_a_node() -> None:
    home = Home("/h")
    options = StartOptions(
        bootstrap=(BOOTSTRAP,),
        gpu="1",
        stage="2",
        data="my.txt",
        threads=3,
        listen=("/ip4/0.0.0.0/tcp/1",),
        announce=("/dns4/train.example.org/tcp/2",),
    )
    check_options(options)
    node = plan_node(options, home, None, stages=None)
    assert (node.home, node.device, node.stage, node.data, node.threads) == ("/h", "cuda:1", 2, "my.txt", 3)
    assert node.announce == ("/dns4/train.example.org/tcp/2",)
    assert (node.bootstrap, node.listen) == ((BOOTSTRAP,), ("/ip4/0.0.0.0/tcp/1",))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *((option, "-1") for option in OPTION_OF.values() if option.count(" ") == 0 and option != "--stage"),
        ("--data-limit", "-1"),
        ("--data-limit", "inf"),
        ("--drain-timeout", "nan"),
        ("--stage", str(1 << 40)),
    ],
)
def test_a_number_that_an_option_can_t_be_is_a_sentence_with_the_option(
    option: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line(["start", "--bootstrap", BOOTSTRAP, "--home", str(tmp_path), option, value]) == 2
    assert capsys.readouterr().err.startswith(f"swarmd: {option} ")


def test_every_number_of_a_node_that_has_an_option_is_named_by_it() -> None:
    assert set(OPTION_OF.values()) - {"--data-limit in bytes"} <= set(GIVEN)


def test_a_joiner_s_own_text_is_the_node_s() -> None:
    options = StartOptions(bootstrap=(BOOTSTRAP,), data="my.txt", tokenizer="t.json", data_limit_gb=2.5)
    node = plan_node(options, Home("/h"), None, stages=None)
    assert (node.data, node.tokenizer, node.limits.stream_bytes) == ("my.txt", "t.json", 2_500_000_000)


def test_the_data_of_a_founded_run_belongs_to_the_run() -> None:
    assert plan_node(StartOptions(model="tiny", data="my.txt"), Home("/h"), None, stages=3).data is None


def test_a_remembered_join_gives_the_stage_that_was_not_given() -> None:
    remembered = Remembered((BOOTSTRAP,), stage=1)
    home = Home("/h")
    node = plan_node(StartOptions(idle=True), home, remembered, stages=None)
    assert (node.bootstrap, node.stage) == ((), 1)
    assert plan_node(StartOptions(stage="0"), home, remembered, stages=None).stage == 0
    assert plan_node(StartOptions(stage="auto"), home, remembered, stages=None).stage is None


def test_models_may_be_founded_with_mdns() -> None:
    check_options(StartOptions(model="tiny", mdns=True))
    check_options(StartOptions(bootstrap=(BOOTSTRAP,), mdns=True))
    with pytest.raises(ConfigError):
        check_options(StartOptions(idle=True, mdns=True))


@pytest.mark.parametrize(("device", "grown"), [("cpu", 0), ("cuda:1", 1)])
def test_the_allocator_of_cards_is_set_up_before_a_daemon_runs(
    device: str, grown: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    async def run_daemon(node: NodeConfig, *_: object, **__: object) -> int:
        order.append(node.device)
        return 0

    monkeypatch.setattr(start, "grow_segments", lambda: order.append("grow"))
    monkeypatch.setattr(process, "run_daemon", run_daemon)
    monkeypatch.setattr(logs, "configure_logging", lambda *_, **__: None)
    assert run_command_line(["start", "--idle", "--device", device, "--home", str(tmp_path)]) == 0
    assert order == ["grow"] * grown + [device]


@pytest.mark.parametrize("option", ["--compute-dtype", "--recompute"])
def test_a_word_that_an_option_doesn_t_have_is_told_those_that_it_has(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line(["start", "--bootstrap", BOOTSTRAP, option, "half"]) == 2
    assert capsys.readouterr().err.startswith(f"swarmd: Invalid value for '{option}': 'half' is not one of 'auto', ")
