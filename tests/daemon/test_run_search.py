"""The daemon looks for a run: at all addresses it was given at once."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from swarmd.config import ModelConfig, NodeConfig, RunConfig
from swarmd.daemon.local import Home
from swarmd.daemon.run_search import RunSearch
from swarmd.errors import PeerUnreachable
from swarmd.sim.network import SimNetwork
from swarmd.swarm.links import Links
from swarmd.swarm.membership import Membership, first_card

RUN = RunConfig("toy", ModelConfig(256, 8, 16, 2, 2, 2, 16))


class Asking(RunSearch):
    """At some addresses nobody answers, at some nobody is, at some there is a run."""

    cancelled = 0

    async def _adopt(self, address: str, only: str = "") -> None:
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


@pytest.mark.timeout(20)
async def test_a_silent_bootstrap_peer_keeps_nobody_waiting(tmp_path: Path) -> None:
    asking = searching(tmp_path, "silent", "dead", "good")
    await asking.find(idle=False)
    assert (asking.run, asking.cancelled) == (RUN, 1)


async def test_every_address_is_told_why_it_gave_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarmd.daemon.run_search.JOIN_PATIENCE_SECONDS", 0.0)
    with pytest.raises(PeerUnreachable, match="dead: refused"):
        await searching(tmp_path, "dead").find(idle=False)
