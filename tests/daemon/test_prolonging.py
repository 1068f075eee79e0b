"""More steps for a run: which run a founder goes on with, and who follows it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from swarmd.cli.options import StartOptions, check_options
from swarmd.config import ModelConfig, NodeConfig, OptimizerConfig, RunConfig, fingerprint, prolonged, to_plain
from swarmd.daemon.home import Home
from swarmd.daemon.known_peers import KnownPeer
from swarmd.daemon.prolonging import newest_version, plan_resumed, rates
from swarmd.daemon.remembered import RememberedRun
from swarmd.daemon.run_search import RunSearch
from swarmd.errors import ConfigError, Refused
from swarmd.settings import with_overrides
from swarmd.sim.world.network import SimNetwork
from swarmd.swarm.membership.table import Membership
from swarmd.swarm.wire.links import Links
from swarmd.swarm.wire.own_card import OwnCard, first_card

RUN = RunConfig(
    name="toy",
    model=ModelConfig(256, 8, 16, 2, 2, 2, 16),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=10),
    steps=40,
)
LONGER = prolonged(RUN, 60)


def home_of(path: Path, run: RunConfig, *versions: int, done: int = 0, peers: tuple[str, ...] = ()) -> Home:
    """A home of a run with checkpoints and a ledger."""
    home = Home(path)
    home.prepare()
    for version in versions:
        manifest = home.checkpoints / f"step-{version:06d}" / "stage-0.json"
        manifest.parent.mkdir(parents=True)
        manifest.write_text("{}")
    home.ledger.write_text("".join(json.dumps({"step": step, "record": "r"}) + "\n" for step in range(1, done + 1)))
    known = tuple(KnownPeer(peer.rpartition("/")[2], (f"/ip4/192.0.2.1/tcp/1/p2p/{peer[5:]}",)) for peer in peers)
    home.remember_run(RememberedRun(to_plain(run), fingerprint(run), 0, peers, bool(versions), known=known))
    return home


def model(run: RunConfig) -> Any:
    """The run that `--model` names, with or without `--steps`."""
    return lambda steps: with_overrides(run, steps=steps)


def nothing(steps: int | None) -> None:
    """No `--model`."""


# ------------------------------------------------------------------------------------------------- the founder


@pytest.mark.parametrize("load", [nothing, model(RUN), model(dataclasses.replace(RUN, steps=60))])
def test_a_founder_gives_its_run_more_steps(tmp_path: Path, load: Any) -> None:
    home = home_of(tmp_path, RUN, 20, 40, done=40)
    run, told = plan_resumed(home, load, 60)
    assert run == LONGER
    assert told == (
        "run toy goes on to 60 steps instead of 40: learning rate 0 at step 40 of 40, 0.00038 at step 41 of 60"
    )
    again = home_of(tmp_path / "again", run, 40, done=40)
    assert plan_resumed(again, load, 60) == (LONGER, ""), "a service gives the same words each time"
    assert plan_resumed(again, nothing, None) == (LONGER, "")
    twice, told = plan_resumed(again, load, 100)
    assert twice.totals == (40, 60, 100)
    assert "100 steps instead of 60" in told


def test_the_settings_of_an_earlier_total_are_still_those_of_the_run(tmp_path: Path) -> None:
    home = home_of(tmp_path, LONGER, 40)
    assert plan_resumed(home, model(RUN), None) == (LONGER, "")
    assert plan_resumed(home, model(RUN), 60) == (LONGER, "")
    with pytest.raises(ConfigError, match="add --steps 80 to go on with it to so many, or --steps 60"):
        plan_resumed(home, model(dataclasses.replace(RUN, steps=80)), None)


def test_a_warm_up_that_was_cut_to_the_first_total_stays_so(tmp_path: Path) -> None:
    """A preset with a long warm-up was founded with few steps: more of them don't make it warm up again."""
    preset = dataclasses.replace(RUN, steps=1000, optimizer=dataclasses.replace(RUN.optimizer, warmup_steps=100))
    founded = with_overrides(preset, steps=40)
    run, _ = plan_resumed(home_of(tmp_path, founded, 40), model(preset), 200)
    assert (run.totals, run.optimizer.warmup_steps) == ((40, 200), 40)


def test_fewer_steps_than_done_are_refused(tmp_path: Path) -> None:
    home = home_of(tmp_path, RUN, 20, done=27)
    assert newest_version(home) == 27
    with pytest.raises(ConfigError, match=r"has done 27 steps already.*give at least --steps 27"):
        plan_resumed(home, nothing, 26)
    run, told = plan_resumed(home, model(RUN), 27)
    assert run.totals == (40, 27), "fewer than it had, but not than it has done"
    assert told.endswith("and no steps are left")
    home.ledger.write_text('{"step": 12, "record": "r"}\n{"st')
    assert newest_version(home) == 20, "the ledger is torn, and the checkpoint is newer"


def test_where_nothing_is_saved_the_run_begins_with_its_steps(tmp_path: Path) -> None:
    home = home_of(tmp_path, RUN)
    assert plan_resumed(home, nothing, 60) == (dataclasses.replace(RUN, steps=60), "")
    assert plan_resumed(home, model(RUN), 60) == (dataclasses.replace(RUN, steps=60), "")
    assert plan_resumed(Home(tmp_path / "new"), model(RUN), 60) == (dataclasses.replace(RUN, steps=60), "")
    with pytest.raises(ConfigError, match="the home of no run yet"):
        plan_resumed(Home(tmp_path / "new"), nothing, 60)


def test_another_run_is_left_to_whoever_checks_the_home(tmp_path: Path) -> None:
    home = home_of(tmp_path, RUN, 40)
    other = dataclasses.replace(RUN, seed=9)
    assert plan_resumed(home, model(other), 60) == (dataclasses.replace(other, steps=60), "")


def test_rates() -> None:
    assert rates(LONGER, 40, 25) == "learning rate 0.0005 at step 25 of 40, 0.00068 at step 26 of 60"
    assert rates(LONGER, 40, 40) == "learning rate 0 at step 40 of 40, 0.00038 at step 41 of 60"


def test_a_home_that_was_only_told_of_checkpoints_says_nothing_of_rates(tmp_path: Path) -> None:
    home = home_of(tmp_path, RUN)
    home.remember_run(RememberedRun(to_plain(RUN), fingerprint(RUN), checkpointed=True))
    assert plan_resumed(home, nothing, 60)[1].endswith(": from the newest version on its peers' disks")


def test_steps_go_with_resume_but_not_with_an_address() -> None:
    check_options(StartOptions(resume=True, steps=60))
    for options in (
        StartOptions(resume=True, steps=60, bootstrap=("/ip4/1.2.3.4/tcp/1/p2p/x",)),
        StartOptions(steps=6),
    ):
        with pytest.raises(ConfigError, match="with --resume where it is founded again"):
            check_options(options)


# ------------------------------------------------------------------------------------------------- the others


def searching(network: SimNetwork, name: str, home: Home, **changes: Any) -> RunSearch:
    """A daemon on a network, which doesn't look for a run yet."""
    transport: Any = network.transport(name)
    transport.recall = lambda peer, *_: transport.learn(peer, ())  # a simulated peer needs no more than to be named
    own = OwnCard(first_card(name, 1, transport.addresses(), "cpu", ()))
    membership = Membership(own)
    links = Links(transport, own, membership, lambda: search.settings())
    search = RunSearch(NodeConfig(home=str(home.path), **changes), home, transport, links, membership)
    return search


def founder(network: SimNetwork, tmp_path: Path, run: RunConfig) -> str:
    """Somebody works at a run already. Returns where."""
    it = searching(network, "founder", Home(tmp_path / "founder"))
    it.run = run
    return it._transport.addresses()[0]


async def test_others_follow_without_options(tmp_path: Path) -> None:
    """They were told an address, remember one, or would have founded the old run again."""
    network = SimNetwork()
    address = founder(network, tmp_path, prolonged(LONGER, 80))
    told = searching(network, "told", home_of(tmp_path / "told", RUN, 40), bootstrap=(address,))
    await told.find(idle=False)
    resuming = searching(network, "resuming", home_of(tmp_path / "r", LONGER, 40, peers=(address,)), resume=True)
    await resuming.begin(LONGER)
    for it, before in ((told, RUN), (resuming, LONGER)):
        assert it.run is not None
        assert it.run.totals == (40, 60, 80)
        assert it.known is not None, "the home's stage and checkpoints are used"
        assert it.known.fingerprint == fingerprint(before)
        assert it.entries == ("founder",)


async def test_nobody_follows_another_run(tmp_path: Path) -> None:
    """A run isn't this home's because someone says that it is a longer one of some run."""
    network = SimNetwork()
    address = founder(network, tmp_path, dataclasses.replace(LONGER, seed=1))
    it = searching(network, "told", home_of(tmp_path / "told", RUN, 40), bootstrap=(address,))
    with pytest.raises(ConfigError, match="choose another --home"):
        await it.find(idle=False)
    resuming = searching(
        network, "resuming", home_of(tmp_path / "r", RUN, 40, peers=(address,)), resume=True, found_after_s=0.5
    )
    await resuming.begin(LONGER)
    assert resuming.run == LONGER
    assert resuming.entries == (), "it founds its own"


@pytest.mark.parametrize("living", [RUN, prolonged(RUN, 50)])
async def test_nobody_prolongs_a_run_that_others_work_at(tmp_path: Path, living: RunConfig) -> None:
    """Nor do two founders who give it different totals go on beside each other."""
    network = SimNetwork()
    address = founder(network, tmp_path, living)
    it = searching(network, "second", home_of(tmp_path / "second", RUN, 40, peers=(address,)), resume=True)
    with pytest.raises(ConfigError, match=f"has {living.steps} steps for them: leave out --steps.*stop them first"):
        await it.begin(LONGER)
    assert it.run is None


async def test_a_home_of_a_longer_run_is_not_put_back(tmp_path: Path) -> None:
    network = SimNetwork()
    address = founder(network, tmp_path, RUN)
    it = searching(network, "told", home_of(tmp_path / "told", LONGER, 50), bootstrap=(address,))
    with pytest.raises(ConfigError, match=r"prolonged to 60 steps.*must give --steps 60 --resume"):
        await it.find(idle=False)


async def test_to_prolong_without_resume_is_explained(tmp_path: Path) -> None:
    it = searching(SimNetwork(), "a", home_of(tmp_path, RUN, 40))
    with pytest.raises(ConfigError, match=r"with 40 steps, and it is to have 60 here.*--steps 60 --resume"):
        await it.begin(dataclasses.replace(RUN, steps=60))


async def test_a_living_peer_of_the_old_total_is_told_what_to_do(tmp_path: Path) -> None:
    network = SimNetwork()
    address = founder(network, tmp_path, LONGER)
    old = searching(network, "old", home_of(tmp_path / "old", RUN, 40))
    old.run = RUN
    with pytest.raises(Refused, match=r"prolonged to 60 steps: a daemon .* follows once it is started again"):
        await old._links.greet(await old._transport.connect(address))
