"""The daemon looks for a run: at all addresses it was given at once."""

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from swarmd.config import ModelConfig, NodeConfig, RunConfig, fingerprint, to_plain
from swarmd.daemon.local import Home, RememberedRun
from swarmd.daemon.run_search import RunSearch
from swarmd.errors import PeerUnreachable
from swarmd.sim.network import SimNetwork
from swarmd.swarm.links import Links
from swarmd.swarm.membership import Membership, first_card

RUN = RunConfig("toy", ModelConfig(256, 8, 16, 2, 2, 2, 16))


class Asking(RunSearch):
    """At some addresses nobody answers, at some nobody is, at some there is a run."""

    cancelled = 0

    async def _adopt(self, address: str, instead_of: RunConfig | None = None) -> None:
        if address == "silent":
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                self.cancelled += 1
        if address == "dead":
            raise PeerUnreachable("refused")
        self.run = RUN


def searching(tmp_path: Path, *bootstrap: str) -> Asking:
    transport: Any = SimNetwork().transport("a")
    card = first_card("a", 1, (), "cpu", ())
    membership = Membership(card)
    links = Links(transport, membership, lambda: None)
    return Asking(NodeConfig(home=str(tmp_path), bootstrap=bootstrap), Home(tmp_path), transport, links, membership)


def old_home(path: Path, *, ledger: bool = False) -> Home:
    """As the first release left it when it was stopped before the first step, and tried in vain to resume."""
    folder = path / "checkpoints/step-000000"
    folder.mkdir(parents=True)
    (folder / "stage-0.json").write_text("{}")
    (folder / "stage-0.safetensors").write_bytes(b"")
    home = Home(path)
    home.remember_run(RememberedRun(to_plain(RUN), fingerprint(RUN), 0, (), checkpointed=True))
    if ledger:
        home.ledger.write_text('{"step": 1}\n')
    return home


@pytest.mark.parametrize("resume", [False, True])
async def test_a_home_that_never_came_to_a_step_starts_as_if_new(tmp_path: Path, resume: bool) -> None:
    home = old_home(tmp_path)
    assert not home.has_checkpoints()
    search = searching(tmp_path)
    search.resume = resume
    await search.begin(RUN)
    assert search.run == RUN
    assert not search.resume


@pytest.mark.parametrize("resume", [False, True])
async def test_another_run_may_begin_where_none_ever_came_to_a_step(tmp_path: Path, resume: bool) -> None:
    old_home(tmp_path)
    search, other = searching(tmp_path), dataclasses.replace(RUN, seed=1)
    search.resume = resume
    await search.begin(other)
    assert (search.run, search.resume) == (other, False)


async def test_a_run_that_came_to_steps_is_resumed_also_where_nothing_of_it_is(tmp_path: Path) -> None:
    old_home(tmp_path, ledger=True)
    search = searching(tmp_path)
    search.resume = True
    await search.begin(RUN)
    assert search.resume


@pytest.mark.timeout(20)
async def test_a_silent_bootstrap_peer_keeps_nobody_waiting(tmp_path: Path) -> None:
    asking = searching(tmp_path, "silent", "dead", "good")
    await asking.find(idle=False)
    assert (asking.run, asking.cancelled) == (RUN, 1)


async def test_every_address_is_told_why_it_gave_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarmd.daemon.run_search.JOIN_PATIENCE_SECONDS", 0.0)
    with pytest.raises(PeerUnreachable, match="dead: refused"):
        await searching(tmp_path, "dead").find(idle=False)
