"""The search for a run: a daemon founds one, goes on with one that is on its disk, or takes the settings of a peer's.

It asks peers that it was told of, remembers or hears of on the local network (`candidates.py`), until one gives a run:
one that can't be reached may come yet, so it waits, and says for what. Relies on `Links` for the greeting, which proves
the run's fingerprint, and on the home for what an earlier life wrote down.
"""

import asyncio
import contextlib
import dataclasses
import logging
import random
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from swarmd.config import NodeConfig, RunConfig, fingerprint, lineage, to_plain
from swarmd.daemon.candidates import Candidate, Candidates, Outcome
from swarmd.daemon.home import Home
from swarmd.daemon.known_peers import KnownPeer, known_of, merge_known, peer_of
from swarmd.daemon.logs import NOTICE
from swarmd.daemon.offers import AnotherRun, NoRun, Prolonged, ask_settings, check_wanted, read_run
from swarmd.daemon.remembered import Remembered, RememberedRun
from swarmd.errors import (
    NO_ANSWER,
    ConfigError,
    ControlError,
    GaveUp,
    Mismatch,
    WrongPeer,
)
from swarmd.sizes import unfit
from swarmd.status import Wait
from swarmd.swarm.membership.table import Membership
from swarmd.swarm.signals import Signal
from swarmd.swarm.wire.links import Links
from swarmd.swarm.wire.messages.presence import Card, Settings
from swarmd.values import PeerId

if TYPE_CHECKING:
    from swarmd.net.libp2p import Libp2pTransport

log = logging.getLogger(__name__)

TURN_S = 10.0  # for each peer that comes before this one to found the run
OPINIONS_S = 2.0  # for the others that the user named to say which run they are of, once one has
OPINION_LOOK_S = 0.2  # between two looks whether they have
LOOK_S = 1.0  # between two looks whether it is enough
ENTRIES = 16  # remembered peers that are asked for a place, if the one that gave the run falls silent
TROUBLES_SHOWN = 3  # of all who were asked


class RunSearch:
    """The run that this daemon is of, and the peers through whom it came to it."""

    def __init__(
        self, config: NodeConfig, home: Home, transport: "Libp2pTransport", links: Links, membership: Membership
    ) -> None:
        self._config, self._home, self._transport = config, home, transport
        self._links, self._membership = links, membership
        self.run: RunConfig | None = None
        self._proving: RunConfig | None = None  # it becomes the run if the greeting under way proves its fingerprint
        self.known: RememberedRun | None = None  # what this home says of the run
        self.resume = config.resume
        self.entries: tuple[PeerId, ...] = ()  # the peer that gave the run's settings, and others that may give a place
        self.named: tuple[PeerId, ...] = ()  # those of them that the user named, as far as they are of that run
        self._given_runs: dict[PeerId, str] = {}  # peers that the user named -> the run that each gives
        self.idle = False  # it waits to be told
        self.looking: Wait | None = None  # what it looks for at present, and what came of the last tries
        self.others: tuple[KnownPeer, ...] = ()  # that this home knows of the run
        self._rng = random.Random()
        self._candidates = Candidates(self._rng)
        self._since = 0.0  # loop time since when it looks
        self._all_wait_since: float | None = None  # loop time since when all others are there and have no run
        self._ours: RunConfig | None = None  # the run that this daemon founds unless others work at it
        self._prolonged: ConfigError | None = None  # they do, for another number of steps than it is to have here
        self._only = ""  # fingerprint of the one run that is looked for; "": any
        self._changed = Signal()
        self._adopting = asyncio.Lock()  # several peers may offer a run at once
        links.on_offer(self._offered)
        links.on_asked_in_vain(self._asked_in_vain)

    def settings(self) -> Settings | None:
        """The run's settings, as others are given them."""
        run = self.run or self._proving
        return Settings(to_plain(run), fingerprint(run)) if run else None

    # ---------------------------------------------------------------------------------------------- founding

    async def begin(self, run: RunConfig) -> None:
        """Begins a run, or goes on with one from checkpoints; where others of it still live, joins them. Raises
        ConfigError, GaveUp.
        """
        self.check_fits(run)
        self._check_home(run)
        if self.known is not None:
            self._remember_others(self.known.known, *self._bootstrap_of_old())
            await self._look_for_others(run)
        if self.run is not None:
            return
        if self.known is not None and not self.resume and (self.others or self._home.has_checkpoints()):
            raise ConfigError(self._why_not_anew(run))
        self.resume = self.resume and self.is_checkpointed()  # else it begins
        log.log(NOTICE, "run %s (%s): %d steps, %d stages", run.name, fingerprint(run), run.steps, run.model.stages)
        self.run = run

    def is_checkpointed(self) -> bool:
        """True if the run has come to a version that is on disks, as far as this home knows."""
        return self._home.is_checkpointed(self.known)

    def _check_home(self, run: RunConfig) -> None:
        """A home with another run's checkpoints is left as it is. Raises ConfigError."""
        known = self._home.remembered_run()
        if known is not None and known.fingerprint not in lineage(run):
            if self._home.has_checkpoints():
                from swarmd.daemon.prolonging import mismatch

                raise ConfigError(mismatch(self._home, known, run))
            known = None
        self.known = known

    def check_fits(self, run: RunConfig) -> None:
        """Raises ConfigError if nothing of a run can be done here: before its text is read, and anything allocated."""
        if why := self._unfit(run):
            raise ConfigError(f"{why}; give a smaller model, more stages, or a larger device.")

    def _unfit(self, run: RunConfig) -> str:
        """Why nothing of a run can be done here, in a sentence; "" if some may."""
        wanted = self._config.stage
        exists = wanted is not None and wanted < run.model.stages
        return unfit(run, self._membership.own.memory_bytes, wanted if exists else None)

    async def _look_for_others(self, run: RunConfig) -> None:
        """Joins the run if one of the peers that this home knew works at it, now or within the time for that: beside
        them it must not be founded again.
        """
        if not self.others:
            return
        self._ours, self._only = run, fingerprint(run)
        self._add_others(self._only)
        seconds = self._config.found_after_s
        then = "then it goes on without them" if self.resume else "add --resume to go on without them"
        what = f"another peer of run {run.name}, one of {len(self.others)} that this home knows"
        with self._search(what, f"{then}, after {seconds:.0f} s (--found-after)"):
            await self._ask_until(seconds, enough=self._turn_has_come)
        self._ours, self._only, self._all_wait_since = None, "", None
        if self.run is None and self.resume:
            log.log(NOTICE, "nobody has the run %s: %s", run.name, self._missed())

    def _turn_has_come(self) -> bool:
        """True if all others are there and wait for somebody to found the run, and those that come before this peer had
        the time to do so, if they mean to. Two should not found it at once.
        """
        now, waiting = asyncio.get_running_loop().time(), [it.peer for it in self._candidates.all()]
        if any(candidate.outcome != "no run" for candidate in self._candidates.all()):
            self._all_wait_since = None
            return False
        if self._all_wait_since is None:
            self._all_wait_since = now
        before = sum(peer < self._transport.peer_id for peer in waiting) if self.resume else 0
        return now - self._all_wait_since >= TURN_S * before

    def _missed(self) -> str:
        """The peers that a search didn't find, and why."""
        troubles = self._candidates.troubles()
        more = f"; and {len(troubles) - TROUBLES_SHOWN} more" if len(troubles) > TROUBLES_SHOWN else ""
        return "; ".join(troubles[:TROUBLES_SHOWN]) + more

    def _why_not_anew(self, run: RunConfig) -> str:
        missed = f" Of its other peers none has it now: {self._missed()}." if self.others else ""
        if self._home.has_checkpoints():
            return (
                f"{self._home.path} holds checkpoints of this run: add --resume to go on from them, "
                f"or choose another --home to begin anew.{missed}"
            )
        return (
            f"{self._home.path} has served run {run.name}: start another of its peers, add --resume to go on without "
            f"them, or choose another --home to begin anew.{missed}"
        )

    # ---------------------------------------------------------------------------------------------- joining

    async def find(self, *, idle: bool) -> None:
        """Takes the run's settings from the first peer that gives them; waits for one as long as it takes, or as the
        user wants. Raises ConfigError when it can't come to anything, GaveUp.
        """
        self.idle = idle
        if idle:
            log.log(NOTICE, "idle: `swarmctl join --bootstrap MULTIADDR` makes this daemon join a swarm")
            await self._changed.until(lambda: self.run is not None)
            return
        self._gather()
        many = len(self._candidates.all())
        where = f"at {many} addresses" if many > 1 else self._candidates.all()[0].name if many else "on this network"
        advice = "start the other daemon, or give --bootstrap another address"
        if self._home.is_checkpointed(self._home.remembered_run()):
            advice += "; if all of the run were stopped, start one of them with --resume"
        with self._search(f"the settings of a run, {where}", advice):
            await self._ask_until(None)
        if self._config.bootstrap:
            self._home.remember(Remembered(self._config.bootstrap, self._config.stage))

    def _gather(self) -> None:
        """Adds the peers to ask: those that the user names, and, unless these are new, those that this home knows."""
        given = self._config.bootstrap
        for address in given:
            self._candidates.add(Candidate(peer_of(address), address, given=True))
        known, old = self._home.remembered_run(), self._bootstrap_of_old()
        others = known.known if known is not None else ()
        if known is not None and not given:
            self._only = known.fingerprint
        familiar = {it.peer for it in (*others, *old)}
        if not given or familiar & {peer_of(address) for address in given}:
            for address in (address for it in old for address in it.addresses):
                self._candidates.add(Candidate(peer_of(address), address))
            self._remember_others(others)
            self._add_others(known.fingerprint if known is not None else "")

    def _bootstrap_of_old(self) -> tuple[KnownPeer, ...]:
        """The peers at which an earlier life joined."""
        try:
            remembered = self._home.remembered()
        except ConfigError as trouble:
            log.warning("%s", trouble)
            return ()
        return known_of(remembered.bootstrap) if remembered is not None else ()

    def _remember_others(self, others: tuple[KnownPeer, ...], *more: KnownPeer) -> None:
        """Tells the transport where an earlier life found them."""
        own = self._transport.peer_id
        self.others = tuple(it for it in merge_known(others, more) if it.peer != own)
        for it in self.others:
            self._transport.recall(it.peer, it.addresses, it.addresses[: it.worked], it.machine)

    def _add_others(self, only: str) -> None:
        for it in self._rng.sample(self.others, len(self.others)):
            self._candidates.add(Candidate(it.peer, only=only))

    # ---------------------------------------------------------------------------------------------- asking

    @contextlib.contextmanager
    def _search(self, what: str, advice: str) -> Iterator[None]:
        """Shows what is looked for while the block runs."""
        self.looking, self._since = Wait(what, advice=advice), asyncio.get_running_loop().time()
        try:
            yield
        finally:
            self.looking = None

    async def _ask_until(self, seconds: float | None, enough: Callable[[], bool] = lambda: False) -> None:
        """Asks around until somebody gives a run, the time is over, or it is enough. Raises ConfigError when all refuse
        for good, GaveUp when the user wants no longer wait.
        """
        loop = asyncio.get_running_loop()
        over = None if seconds is None else loop.time() + seconds
        assert self.looking is not None
        patience = None if self._config.wait_s is None else self._since + self._config.wait_s
        tries: set[asyncio.Task[None]] = set()
        try:
            while self.run is None and not enough():
                now = loop.time()
                if patience is not None and now >= patience:
                    waited = dataclasses.replace(self.looking, seconds=now - self._since)
                    raise GaveUp(f"--wait is over: waiting for {waited.sentence()}.")
                if over is not None and now >= over and not self._adopting.locked():  # nobody is about to be joined
                    return
                self._check_refusals()
                tries |= {asyncio.create_task(self._try(it)) for it in self._candidates.next(now)}
                ends = [end - now for end in (over, patience) if end is not None]
                tries = await self._wait(tries, min([LOOK_S, self._candidates.wait_s(now), *ends]))
                self.looking = dataclasses.replace(self.looking, tried=self._missed() or "nobody was heard of yet")
        finally:
            for one in tries:
                one.cancel()
            await asyncio.gather(*tries, return_exceptions=True)

    async def _wait(self, tries: "set[asyncio.Task[None]]", seconds: float) -> "set[asyncio.Task[None]]":
        """Waits until one has ended, somebody new is there, or the time is over. Returns those that haven't ended."""
        changed = asyncio.create_task(self._changed.wait(seconds))
        try:
            await asyncio.wait({*tries, changed}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            changed.cancel()
        for one in tries:
            if one.done():
                one.result()  # nothing is raised that isn't a bug
        return {one for one in tries if not one.done()}

    def _check_refusals(self) -> None:
        """Raises ConfigError where no waiting helps. A service waits all the same: nobody would start it again."""
        if self._prolonged is not None:
            raise self._prolonged
        if (refusals := self._candidates.refusals()) and not self._config.service:
            raise ConfigError(f"can't join: {'; '.join(refusals)}.")

    async def _try(self, it: Candidate) -> None:
        """Asks one, and reports the outcome to the candidates."""
        loop = asyncio.get_running_loop()
        try:
            await self._adopt(it.address or it.peer, it.only)
        except NoRun as trouble:
            self._candidates.failed(it, "no run", f"it has no run yet ({trouble})", loop.time())
        except Mismatch as trouble:
            self._candidates.failed(it, "refused", str(trouble), loop.time())
        except Prolonged as trouble:
            self._prolonged = trouble
        except (ConfigError, AnotherRun, WrongPeer) as trouble:
            another: Outcome = "unreachable" if isinstance(trouble, WrongPeer) else "another run"
            self._candidates.failed(it, "refused" if it.given else another, str(trouble), loop.time())
        except NO_ANSWER as trouble:
            self._candidates.failed(it, "unreachable", str(trouble) or "no answer in time", loop.time())
        else:
            return
        finally:
            it.asking = False
        log.info("%s: %s", it.name, it.trouble)

    async def _adopt(self, where: str, only: str = "") -> None:
        """Asks a peer, or the one at an address, for the run's settings and makes them this daemon's. `only`: of a run
        with this fingerprint. Raises ConfigError, Refused, PeerUnreachable, PeerFault, TimeoutError.
        """
        if self.run is not None:
            return
        peer = await self._transport.connect(where) if "/" in where else where
        settings = await ask_settings(self._links, peer)
        run = read_run(settings)
        if why := self._unfit(run):
            raise Mismatch(why)
        check_wanted(run, only, self._ours)
        await self._compare(peer, settings.fingerprint)
        async with self._adopting:
            if self.run is not None:
                return
            self._check_home(run)
            self._proving = run
            try:
                await self._links.greet(peer)
                self.run = run
            finally:
                self._proving = None
            self.named = self._named_of(settings.fingerprint)
            self.entries = tuple(dict.fromkeys((peer, *self.named, *(it.peer for it in self.others[:ENTRIES]))))
        log.log(NOTICE, "joined run %s (%s) at %s", run.name, settings.fingerprint, where)
        if self.known is not None and self.known.fingerprint != settings.fingerprint:
            log.log(NOTICE, "it is the run of this home, which now has %d steps in all", run.steps)
        self._changed.notify()

    async def _compare(self, peer: PeerId, run: str) -> None:
        """Waits a moment for the runs that the others give whom the user named: one of them may lie. The run that most
        give is the one that is meant; on a tie, that of the peer named first. Raises AnotherRun.
        """
        named, loop = [peer_of(address) for address in self._config.bootstrap], asyncio.get_running_loop()
        if peer not in named:
            return
        self._given_runs[peer] = run
        self._changed.notify()
        over = loop.time() + OPINIONS_S
        while loop.time() < over and any(map(self._may_yet_say, named)):
            await self._changed.wait(min(OPINION_LOOK_S, over - loop.time()))
        runs = [self._given_runs[it] for it in named if it in self._given_runs]
        if run != (most := max(runs, key=runs.count)):
            raise AnotherRun(f"it is of run {run}, and of the peers that were named more, or the first, are of {most}")

    def _may_yet_say(self, peer: PeerId) -> bool:
        """True if a peer that the user named may say soon which run it is of."""
        candidates = self._candidates.of(peer)
        return peer not in self._given_runs and any(it.asking or it.outcome == "untried" for it in candidates)

    def _named_of(self, run: str) -> tuple[PeerId, ...]:
        """The peers that the user named, without those that are of another run; they can be dialled from now on."""
        named = {peer_of(address): address for address in self._config.bootstrap}
        for peer, address in named.items():
            self._transport.learn(peer, (address,))
        return tuple(peer for peer in named if peer and self._given_runs.get(peer, run) == run)

    async def join(self, bootstrap: str) -> None:
        """Makes an idle daemon join, and remember it. Raises ConfigError, ControlError, SwarmError."""
        if self.run is not None:
            raise ControlError(
                f"this daemon already trains run {self.run.name}; stop it first, or give another --home."
            )
        with self._search(f"the settings of a run from {bootstrap}", "`swarmctl join` takes another address, too"):
            await self._adopt(bootstrap)
        self._home.remember(Remembered((bootstrap,), self._config.stage))

    # ---------------------------------------------------------------------------------------------- hearing of others

    def found(self, peer: PeerId, addresses: tuple[str, ...], run: str, machine: str = "") -> None:
        """Adds another daemon on the local network, if it has a run, and the one that is wanted."""
        if not run or peer == self._transport.peer_id or self._only not in ("", run):
            return
        self._transport.learn(peer, addresses, machine)
        self._candidates.add(Candidate(peer, only=self._only, heard=True))
        self._candidates.hurry(peer, asyncio.get_running_loop().time())
        self._changed.notify()

    def _offered(self, card: Card, run: str) -> None:
        """Hurries to ask a peer with a run that has greeted this daemon, if that peer or that run is looked for."""
        wanted = run == self._only or bool(self._candidates.of(card.peer))
        if self.run is not None or self.looking is None or not wanted:
            return
        self._transport.learn(card.peer, card.addresses, card.machine)
        self._candidates.add(Candidate(card.peer, only=self._only))
        self._candidates.hurry(card.peer, asyncio.get_running_loop().time())
        self._changed.notify()

    def _asked_in_vain(self, peer: PeerId) -> None:
        """Notes that a peer asked for the run while this one has none: so it is there, and has none either."""
        for candidate in self._candidates.of(peer):
            if not candidate.asking and candidate.outcome in ("untried", "unreachable"):
                now = asyncio.get_running_loop().time()
                self._candidates.failed(candidate, "no run", "it looks for the run, too", now)
                self._changed.notify()
