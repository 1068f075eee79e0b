"""The daemon looks for a run: whom it asks, how long, what it says meanwhile, when it founds one. In virtual time."""

import asyncio
import dataclasses
import functools
import json
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from swarmd.config import ModelConfig, NodeConfig, RunConfig, fingerprint, prolonged, to_plain
from swarmd.daemon.candidates import LONGEST_PAUSE_S, REFUSED_PAUSE_S
from swarmd.daemon.home import Home
from swarmd.daemon.known_peers import KnownPeer
from swarmd.daemon.offers import NoRun, check_wanted
from swarmd.daemon.remembered import Remembered, RememberedRun
from swarmd.daemon.run_search import OPINIONS_S, RunSearch
from swarmd.errors import ConfigError, GaveUp, Mismatch, PeerUnreachable, SwarmError, WrongPeer
from swarmd.net.address_book import AddressBook
from swarmd.net.limits import TransportLimits
from swarmd.sim.world.clock import run_virtual
from swarmd.sim.world.network import SimNetwork
from swarmd.swarm.membership.table import Membership
from swarmd.swarm.wire.links import Links
from swarmd.swarm.wire.messages.common import PROTOCOL
from swarmd.swarm.wire.messages.presence import Settings
from swarmd.swarm.wire.own_card import OwnCard, first_card

RUN = RunConfig("toy", ModelConfig(256, 8, 16, 2, 2, 2, 16))
OTHER_RUN = dataclasses.replace(RUN, seed=1)
B, C = "/ip4/192.0.2.2/tcp/1/p2p/b", "/ip4/192.0.2.3/tcp/1/p2p/c"

Answer = SwarmError | RunConfig | None
"""What a peer that is asked raises, or the run that it gives; None: it is silent."""


class Asking(RunSearch):
    """One whose peers answer as is written in a script, from given times on."""

    def prepare(self, **script: "Answer | list[tuple[float, Answer]]") -> "Asking":
        self.script = {peer: it if isinstance(it, list) else [(0.0, it)] for peer, it in script.items()}
        self.asked: list[tuple[float, str]] = []
        self.cancelled = 0
        return self

    async def _adopt(self, where: str, only: str = "") -> None:
        now, peer = asyncio.get_running_loop().time(), where.rpartition("/")[2]
        self.asked.append((now, where))
        answer = [it for since, it in self.script.get(peer, [(0.0, PeerUnreachable("refused"))]) if since <= now][-1]
        if answer is None:
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                self.cancelled += 1
        if isinstance(answer, SwarmError):
            raise answer
        assert answer is not None
        check_wanted(answer, only, self._ours)
        await self._compare(peer, fingerprint(answer))
        self._check_home(answer)
        self.run = answer


def played(
    test: Callable[[Callable[..., Asking]], Awaitable[None]],
) -> Callable[[Path, pytest.LogCaptureFixture], None]:
    """Runs a test in virtual time; it gets what makes a search in the temporary directory."""

    def run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)

        def make(*bootstrap: str, peer: str = "a", script: dict[str, Any] | None = None, **settings: Any) -> Asking:
            transport: Any = SimNetwork().transport(peer)
            book = AddressBook(TransportLimits(), "here/here")
            transport.recall, transport.learn = book.recall, book.learn
            own = OwnCard(first_card(peer, 1, (), "cpu", ()))
            membership = Membership(own)
            links = Links(transport, own, membership, lambda: None)
            config = NodeConfig(home=str(tmp_path), bootstrap=bootstrap, **settings)
            return Asking(config, Home(tmp_path), transport, links, membership).prepare(**(script or {}))

        run_virtual(test(make))  # type: ignore[arg-type]

    run.__name__, run.__doc__ = getattr(test, "__name__", ""), test.__doc__
    return run


def served(search: Asking, *peers: str, checkpointed: bool = False, run: RunConfig = RUN) -> None:
    """The home has been of a run, with these others."""
    known = tuple(KnownPeer(peer, (f"/ip4/192.0.2.9/tcp/1/p2p/{peer}",)) for peer in peers)
    addresses = tuple(address for it in known for address in it.addresses)
    search._home.prepare()
    search._home.remember_run(RememberedRun(to_plain(run), fingerprint(run), 0, addresses, checkpointed, known=known))
    if checkpointed:
        saved = search._home.checkpoints / "step-000004" / "stage-0.json"
        saved.parent.mkdir(parents=True)
        saved.write_text("{}")


def seconds() -> float:
    return asyncio.get_running_loop().time()


# ------------------------------------------------------------------------------------------------- joining


@played
async def test_a_silent_bootstrap_peer_keeps_nobody_waiting(make: Callable[..., Asking]) -> None:
    asking = make("/x/p2p/silent", "/x/p2p/dead", "/x/p2p/good", script={"silent": None, "good": RUN})
    await asking.find(idle=False)
    assert (asking.run, asking.cancelled) == (RUN, 1)
    assert seconds() < OPINIONS_S + 1


@pytest.mark.parametrize("liar", [0, 1, 2])
def test_of_three_that_were_named_one_liar_keeps_nobody_out(
    liar: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    @played
    async def test(make: Callable[..., Asking]) -> None:
        addresses = [f"/ip4/192.0.2.{number}/tcp/1/p2p/{peer}" for number, peer in enumerate("bcd")]
        script = {peer: OTHER_RUN if number == liar else RUN for number, peer in enumerate("bcd")}
        search = make(*addresses, script=script)
        await search.find(idle=False)
        assert search.run == RUN
        assert set(search._named_of(fingerprint(RUN))) == {peer for number, peer in enumerate("bcd") if number != liar}

    test(tmp_path, caplog)


@played
async def test_of_two_that_were_named_the_first_counts_and_a_dead_one_costs_a_moment(
    make: Callable[..., Asking],
) -> None:
    search = make(B, C, script={"b": RUN, "c": OTHER_RUN})
    await search.find(idle=False)
    assert search.run == RUN
    search = make(B, C, script={"b": RUN, "c": None})
    began = seconds()
    await search.find(idle=False)
    assert search.run == RUN
    assert seconds() - began <= OPINIONS_S


@played
async def test_a_greeting_that_takes_long_is_not_broken_off(make: Callable[..., Asking]) -> None:
    """Nobody takes the run for found before its fingerprint is proven, which takes a busy machine seconds."""
    asking = make("/x/p2p/b")
    seen: list[RunConfig | None] = []

    async def settings_of(_peer: str) -> Settings:
        return Settings(to_plain(RUN), fingerprint(RUN), PROTOCOL)

    async def greet(_peer: str) -> None:
        assert asking.settings() == Settings(to_plain(RUN), fingerprint(RUN)), "this is what it greets with"
        await asyncio.sleep(7.0)
        seen.append(asking.run)

    async def connect(_where: str) -> str:
        return "b"

    stubs = (
        (asking._links, "ask_settings", settings_of),
        (asking._links, "greet", greet),
        (asking._transport, "connect", connect),
    )
    for place, name, stub in stubs:
        setattr(place, name, stub)
    asking._adopt = functools.partial(RunSearch._adopt, asking)  # type: ignore[method-assign]
    await asking.find(idle=False)
    assert (seen, asking.run, asking.entries) == ([None], RUN, ("b",))
    assert seconds() >= 7.0


@played
async def test_who_cannot_be_reached_may_come_yet(make: Callable[..., Asking]) -> None:
    """After five minutes it is there. Until then it is asked ever more seldom, and what is waited for can be said."""
    asking = make(B, script={"b": [(0.0, PeerUnreachable("connection refused")), (300.0, RUN)]})
    found = asyncio.create_task(asking.find(idle=False))
    await asyncio.sleep(2.5)
    assert asking.looking is not None
    for word in (B, "connection refused", "start the other daemon"):
        assert word in asking.looking.sentence()
    await found
    assert asking.run == RUN
    assert asking.looking is None
    assert 300 <= seconds() <= 300 + 1.25 * LONGEST_PAUSE_S
    assert len(asking.asked) <= 14
    asking._home.writes.finish()
    assert asking._home.remembered() == Remembered((B,)), "as a join is"


@played
async def test_a_user_may_wait_no_longer(make: Callable[..., Asking]) -> None:
    asking = make(B, wait_s=30.0)
    with pytest.raises(GaveUp, match=rf"--wait is over: waiting for .*{B}.*for 30 s.*: refused"):
        await asking.find(idle=False)
    assert seconds() == pytest.approx(30, abs=0.1)
    assert asking._home.remembered() is None


@pytest.mark.parametrize(
    "refusal", [WrongPeer("another peer answers"), Mismatch("it speaks protocol 2"), ConfigError("another run's home")]
)
def test_a_refusal_for_good_ends_it_at_once(
    refusal: SwarmError, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    @played
    async def test(make: Callable[..., Asking]) -> None:
        asking = make(B, script={"b": refusal})
        with pytest.raises(ConfigError, match=f"can't join: {B}: {refusal}"):
            await asking.find(idle=False)
        assert seconds() < 1
        alone = make(B, C, script={"b": refusal, "c": [(0.0, PeerUnreachable("dead")), (90.0, RUN)]})
        await alone.find(idle=False)
        assert alone.run == RUN, "the other one may come yet"
        service = make(B, service=True, script={"b": [(0.0, refusal), (3600.0, RUN)]})
        began = seconds()
        await service.find(idle=False)
        assert service.run == RUN, "nobody would start it again"
        assert seconds() - began < 3600 + 1.25 * REFUSED_PAUSE_S
        assert len([where for _, where in service.asked if where == B]) < 20

    test(tmp_path, caplog)


@played
async def test_what_was_remembered_and_is_somebody_elses_now_ends_nothing(make: Callable[..., Asking]) -> None:
    asking = make(script={"b": WrongPeer("another peer answers"), "c": [(0.0, PeerUnreachable("dead")), (200.0, RUN)]})
    served(asking, "b", "c")
    await asking.find(idle=False)
    assert asking.run == RUN


@played
async def test_a_peer_without_a_run_is_waited_for(make: Callable[..., Asking]) -> None:
    asking = make(B, script={"b": [(0.0, NoRun("this daemon is idle")), (20.0, RUN)]})
    found = asyncio.create_task(asking.find(idle=False))
    await asyncio.sleep(3)
    assert asking.looking is not None
    assert "it has no run yet (this daemon is idle)" in asking.looking.sentence()
    await found


@played
async def test_any_known_peer_leads_back(make: Callable[..., Asking]) -> None:
    """The one by which it came never answers again; it isn't even asked first."""
    asking = make(script={"c": RUN})
    served(asking, "b", "c")
    asking._home.remember(Remembered((B,), 1))
    await asking.find(idle=False)
    assert asking.run == RUN
    assert seconds() < 1
    assert {known.peer for known in asking.others} == {"b", "c"}


@played
async def test_where_all_wait_it_is_said_how_the_run_goes_on(make: Callable[..., Asking]) -> None:
    """After a power cut everyone may be started to join, and nobody to resume."""
    asking = make(wait_s=5.0, script={"b": NoRun("this daemon is idle and has no run")})
    served(asking, "b", checkpointed=True)
    with pytest.raises(GaveUp, match=r"it has no run yet .*if all of the run were stopped, start one .*--resume"):
        await asking.find(idle=False)


@played
async def test_the_peers_of_a_home_are_asked_only_for_its_run(make: Callable[..., Asking]) -> None:
    asking = make(script={"b": OTHER_RUN, "c": [(0.0, PeerUnreachable("dead")), (100.0, RUN)]})
    served(asking, "b", "c")
    await asking.find(idle=False)
    assert asking.run == RUN


@pytest.mark.parametrize("familiar", [True, False])
def test_a_bootstrap_address_of_the_same_run_brings_the_others_back(
    familiar: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A service gives it at each start. A new peer is perhaps of another run: then nobody else is asked."""

    @played
    async def test(make: Callable[..., Asking]) -> None:
        asking = make(B, wait_s=50.0, script={"c": RUN})
        served(asking, *("bc" if familiar else "c"))
        if familiar:
            await asking.find(idle=False)
        else:
            with pytest.raises(GaveUp):
                await asking.find(idle=False)
        assert (asking.run == RUN) == familiar

    test(tmp_path, caplog)


@played
async def test_many_are_asked_a_few_at_a_time(make: Callable[..., Asking]) -> None:
    peers = [f"p{number}" for number in range(60)]
    asking = make(wait_s=5.0, script=dict.fromkeys(peers))
    served(asking, *peers)
    with pytest.raises(GaveUp):
        await asking.find(idle=False)
    assert len(asking.asked) == 16
    assert asking.cancelled == 16


# ------------------------------------------------------------------------------------------------- the local network


@played
async def test_what_is_heard_on_the_local_network_is_handled_alike(make: Callable[..., Asking]) -> None:
    asking = make(mdns=True, script={"b": OTHER_RUN, "c": RUN, "d": Mismatch("it speaks protocol 2")})
    served(asking)
    found = asyncio.create_task(asking.find(idle=False))
    await asyncio.sleep(1)
    asking.found("b", (B,), fingerprint(OTHER_RUN))
    asking.found("e", (B,), "")
    asking.found("d", (B,), fingerprint(RUN))
    await asyncio.sleep(1)
    assert [where for _, where in asking.asked] == ["d"], "no other run, and nobody without one"
    asking.found("c", ("/ip4/127.0.0.1/tcp/1", "/ip4/192.0.2.3/tcp/1"), fingerprint(RUN), "there/there")
    await found
    assert asking.run == RUN
    book: AddressBook = asking._transport.learn.__self__  # type: ignore[attr-defined]
    assert [address.host for address in book.addresses("c")] == ["192.0.2.3"], "not this machine's loopback"


# ------------------------------------------------------------------------------------------------- founding


@played
async def test_a_new_home_founds_at_once(make: Callable[..., Asking]) -> None:
    asking = make()
    await asking.begin(RUN)
    assert (asking.run, seconds()) == (RUN, 0)


@played
async def test_a_home_that_knows_nobody_goes_on_at_once(make: Callable[..., Asking]) -> None:
    asking = make(resume=True)
    served(asking, checkpointed=True)
    await asking.begin(RUN)
    assert (asking.run, asking.resume, seconds()) == (RUN, True, 0)


@pytest.mark.parametrize(("resume", "checkpointed"), [(True, True), (True, False), (False, True), (False, False)])
def test_a_home_that_served_the_run_looks_for_the_others_first(
    resume: bool, checkpointed: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Then it founds only with --resume, and says whom it misses."""

    @played
    async def test(make: Callable[..., Asking]) -> None:
        asking = make(resume=resume, found_after_s=40.0, script={"b": PeerUnreachable("no route"), "c": None})
        served(asking, "b", "c", checkpointed=checkpointed)
        if resume:
            await asking.begin(RUN)
            assert (asking.run, asking.resume) == (RUN, checkpointed)
            assert "peer b: no route" in caplog.text
        else:
            with pytest.raises(ConfigError, match=r"add --resume.*peer b: no route"):
                await asking.begin(RUN)
        assert seconds() == pytest.approx(40, abs=0.1)

    test(tmp_path, caplog)


@played
async def test_it_joins_whoever_comes_back_meanwhile(make: Callable[..., Asking]) -> None:
    asking = make(resume=True, script={"b": [(0.0, PeerUnreachable("dead")), (20.0, RUN)]})
    served(asking, "b", checkpointed=True)
    await asking.begin(RUN)
    assert asking.run == RUN
    assert 20 <= seconds() < 50
    assert "joined" not in str(asking._missed())


@played
async def test_it_looks_where_it_once_joined(make: Callable[..., Asking]) -> None:
    """A home of an older release knows one address of the others, and the one by which it came."""
    asking = make(resume=True, script={"b": RUN})
    served(asking, checkpointed=True)
    asking._home.remember(Remembered((B,)))
    await asking.begin(RUN)
    assert (asking.run, seconds() < 1) == (RUN, True)


@pytest.mark.parametrize(("own", "founds_after"), [("a", 0.0), ("bb", 10.0), ("x", 20.0)])
def test_when_all_others_wait_for_it_the_first_of_them_founds_at_once(
    own: str, founds_after: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The others leave that to it, and found only when it doesn't."""

    @played
    async def test(make: Callable[..., Asking]) -> None:
        asking = make(peer=own, resume=True, script=dict.fromkeys("bc", NoRun("it looks for one")))
        served(asking, "b", "c", checkpointed=True)
        await asking.begin(RUN)
        assert seconds() == pytest.approx(founds_after, abs=1.1)

    test(tmp_path, caplog)


@played
async def test_who_asks_it_in_vain_is_there_and_waits(make: Callable[..., Asking]) -> None:
    """Though it can't be reached where it was: it came back elsewhere."""
    asking = make(resume=True)
    served(asking, "b", checkpointed=True)
    begun = asyncio.create_task(asking.begin(RUN))
    await asyncio.sleep(5)
    assert asking.run is None
    asking._asked_in_vain("z")
    asking._asked_in_vain("b")
    await asyncio.wait_for(begun, 1.5)
    assert asking.run == RUN


@played
async def test_one_of_them_of_another_version_is_no_reason_to_found_beside_it(make: Callable[..., Asking]) -> None:
    asking = make(resume=True, script={"b": Mismatch("it speaks protocol 2; update the older one")})
    served(asking, "b", checkpointed=True)
    with pytest.raises(ConfigError, match="update the older one"):
        await asking.begin(RUN)


def old_home(path: Path, *, ledger: bool = False) -> Home:
    """The first release left it so when it was stopped before the first step, and tried in vain to resume."""
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
def test_a_home_that_never_came_to_a_step_starts_as_if_new(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, resume: bool
) -> None:
    @played
    async def test(make: Callable[..., Asking]) -> None:
        home = old_home(tmp_path)
        assert not home.has_checkpoints()
        search = make(resume=resume)
        await search.begin(RUN)
        assert search.run == RUN
        assert not search.resume

    test(tmp_path, caplog)


@pytest.mark.parametrize("resume", [False, True])
def test_another_run_may_begin_where_none_ever_came_to_a_step(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, resume: bool
) -> None:
    @played
    async def test(make: Callable[..., Asking]) -> None:
        old_home(tmp_path)
        search = make(resume=resume)
        await search.begin(OTHER_RUN)
        assert (search.run, search.resume) == (OTHER_RUN, False)

    test(tmp_path, caplog)


@played
async def test_a_run_that_came_to_steps_is_resumed_also_where_nothing_of_it_is(make: Callable[..., Asking]) -> None:
    search = make(resume=True)
    old_home(search._home.path, ledger=True)
    await search.begin(RUN)
    assert search.resume


@played
async def test_a_run_that_others_prolonged_is_the_same_and_one_to_be_prolonged_is_not_while_they_work(
    make: Callable[..., Asking],
) -> None:
    longer = prolonged(RUN, RUN.steps + 10)
    asking = make(resume=True, script={"b": longer})
    served(asking, "b", checkpointed=True)
    await asking.begin(RUN)
    assert asking.run == longer
    prolonging = make(resume=True, script={"b": RUN})
    with pytest.raises(ConfigError, match="leave out --steps to join them"):
        await prolonging.begin(longer)


# ------------------------------------------------------------------------------------------------- meeting


@played
async def test_whoever_greets_it_with_the_run_is_asked_at_once(make: Callable[..., Asking]) -> None:
    """A founder that listens elsewhere now finds this peer where it was, rather than the other way round."""
    asking = make(script={"b": PeerUnreachable("dead"), "c": RUN})
    served(asking, "b")
    found = asyncio.create_task(asking.find(idle=False))
    await asyncio.sleep(100)
    before = len(asking.asked)
    asking._offered(first_card("d", 1, (C,), "cpu", ()), fingerprint(OTHER_RUN))
    await asyncio.sleep(0.1)
    assert len(asking.asked) == before, "another run is of no interest"
    asking._offered(first_card("c", 1, (C,), "cpu", ()), fingerprint(RUN))
    await asyncio.wait_for(found, 1)
    assert asking.run == RUN


# ------------------------------------------------------------------------------------------------- on disk


def test_what_is_known_of_others_outlives_the_daemon(tmp_path: Path) -> None:
    home = Home(tmp_path)
    known = (KnownPeer("b", (B, "/ip4/10.0.0.1/tcp/1/p2p/b"), 1, "there/there"), KnownPeer("c", (C,)))
    home.remember_run(RememberedRun({}, "00ff", 1, (B,), True, known=known))
    again = Home(tmp_path).remembered_run()
    assert again is not None
    assert again.known == known


@pytest.mark.parametrize(
    "known",
    [
        None,
        "x",
        [],
        [None],
        [{"peer": "b"}],
        [{"peer": 1, "addresses": [B]}],
        [{"peer": "b", "addresses": [1]}],
        [{"peer": "c", "addresses": [B]}],
        [{"peer": "b", "addresses": [B], "machine": 1}],
    ],
)
def test_damaged_hints_are_left_out_and_an_old_home_has_none(known: Any, tmp_path: Path) -> None:
    """The first release wrote one address of each."""
    (tmp_path / "run.json").write_text(
        json.dumps({"run": {}, "fingerprint": "00ff", "stage": 0, "peers": [B, "junk", C], "known": known})
    )
    again = Home(tmp_path).remembered_run()
    assert again is not None
    assert again.known == (KnownPeer("b", (B,)), KnownPeer("c", (C,)))
