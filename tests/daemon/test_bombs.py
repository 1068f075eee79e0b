"""Settings that no device like this one can hold, from a file or a peer: refused before anything is allocated."""

import dataclasses
import types
from pathlib import Path
from typing import Any

import pytest

from swarmd.config import ModelConfig, NodeConfig, RunConfig, fingerprint, to_plain
from swarmd.daemon.home import Home
from swarmd.daemon.node import Node
from swarmd.daemon.run_search import RunSearch
from swarmd.daemon.waits import Waits
from swarmd.errors import ConfigError
from swarmd.settings import run_from_plain
from swarmd.sim.world.network import SimNetwork
from swarmd.stage.worker import Worker
from swarmd.swarm.membership.table import Membership
from swarmd.swarm.wire.links import Links
from swarmd.swarm.wire.messages.common import PROTOCOL
from swarmd.swarm.wire.messages.presence import Settings
from swarmd.swarm.wire.own_card import OwnCard, first_card

RUN = RunConfig("toy", ModelConfig(256, 8, 16, 2, 2, 2, 16))


def searching(tmp_path: Path, *bootstrap: str) -> RunSearch:
    transport: Any = SimNetwork().transport("a")
    own = OwnCard(first_card("a", 1, (), "cpu", ()))
    membership = Membership(own)
    links = Links(transport, own, membership, lambda: None)
    return RunSearch(NodeConfig(home=str(tmp_path), bootstrap=bootstrap), Home(tmp_path), transport, links, membership)


BOMB = dataclasses.replace(RUN, model=dataclasses.replace(RUN.model, hidden=1 << 20, ffn=1 << 20))


async def test_a_run_that_fits_no_device_like_this_is_not_founded(tmp_path: Path) -> None:
    search = searching(tmp_path)
    search._links.own.card = dataclasses.replace(search._links.own.card, memory_bytes=24e9)
    with pytest.raises(ConfigError, match=r"takes .* GB at least, and this device has 24.0 GB; give a smaller model"):
        await search.begin(BOMB)
    assert search.run is None


def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: dict[str, Any], *bootstrap: str) -> RunSearch:
    """A search to which the peers at some addresses give these runs' settings."""
    asking = searching(tmp_path, *bootstrap)
    asking._links.own.card = dataclasses.replace(asking._links.own.card, memory_bytes=24e9)

    async def connect(address: str) -> str:
        return address

    async def ask_settings(peer: str) -> Settings:
        plain = runs[peer]
        return Settings(plain, fingerprint(run_from_plain(plain)) if plain is not BAD else "", PROTOCOL)

    async def greet(_: str) -> None:
        pass

    monkeypatch.setattr(asking._transport, "connect", connect)
    monkeypatch.setattr(asking._links, "ask_settings", ask_settings)
    monkeypatch.setattr(asking._links, "greet", greet)
    return asking


BAD: dict[str, Any] = {**to_plain(RUN), "model": {**to_plain(RUN)["model"], "layers": 1 << 20, "stages": 1 << 20}}


@pytest.mark.parametrize(("plain", "why"), [(to_plain(BOMB), "this device has 24.0 GB"), (BAD, "layers")])
async def test_a_bomb_from_the_only_bootstrap_peer_is_the_users_to_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: dict[str, Any], why: str
) -> None:
    with pytest.raises(ConfigError, match=why):
        await given(tmp_path, monkeypatch, {"bad": plain}, "bad").find(idle=False)


@pytest.mark.timeout(20)
async def test_a_bomb_from_one_of_several_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = {"bad": to_plain(BOMB), "worse": BAD, "good": to_plain(RUN)}
    search = given(tmp_path, monkeypatch, runs, "bad", "worse", "good")
    await search.find(idle=False)
    assert search.run == RUN


async def test_a_stage_for_which_there_is_no_memory_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def start(*_: object) -> Worker:
        raise MemoryError("can't allocate memory: you tried to allocate 1 byte")

    async def nothing() -> None:
        pass

    monkeypatch.setattr(Worker, "start", start)
    search = searching(tmp_path)
    search.run = RUN
    node: Any = types.SimpleNamespace(
        search=search,
        config=NodeConfig(home=str(tmp_path)),
        waits=Waits(list),
        _close_worker=nothing,
    )
    with pytest.raises(ConfigError, match="there is no memory for stage 1 on cpu"):
        await Node._open_stage(node, 1)
