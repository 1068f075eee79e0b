"""How a daemon comes to a run: it founds one, goes on with one that is on its disk, or takes the settings of a peer's.

Asks at the addresses that it was given, remembers or hears of on the local network, until one gives a run. Relies on
`Links` for the greeting, which proves the run's fingerprint, and on the home for what an earlier life wrote down.
"""

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from swarmd.config import NodeConfig, RunConfig, fingerprint, lineage, to_plain
from swarmd.daemon.local import Home, Remembered, RememberedRun
from swarmd.daemon.logs import NOTICE
from swarmd.errors import ConfigError, ControlError, PeerFault, PeerUnreachable, Refused, SwarmError
from swarmd.status import Wait
from swarmd.swarm.links import Links
from swarmd.swarm.membership import Membership
from swarmd.swarm.messages import Settings
from swarmd.swarm.signals import Signal
from swarmd.swarm.sizes import unfit
from swarmd.values import PeerId

if TYPE_CHECKING:
    from swarmd.net.libp2p import Libp2pTransport

log = logging.getLogger(__name__)

JOIN_RETRY_SECONDS = 1.0
JOIN_PATIENCE_SECONDS = 30.0  # for a bootstrap peer given on the command line; a remembered one is tried for ever
LIVING_SECONDS = 5.0  # for peers of a run that is to be resumed to answer, if they still work at it
ADDRESSES_HEARD = 64  # on the local network, at most so many are tried


class RunSearch:
    """Which run this daemon is of, and through whom it came to it."""

    def __init__(
        self, config: NodeConfig, home: Home, transport: "Libp2pTransport", links: Links, membership: Membership
    ) -> None:
        self._config, self._home, self._transport = config, home, transport
        self._links, self._membership = links, membership
        self.run: RunConfig | None = None
        self.known: RememberedRun | None = None  # what this home says of the run
        self.resume = config.resume
        self.idle = False  # it waits to be told
        self.looking: Wait | None = None  # what is looked for, and what came of the last try
        self.entries: tuple[PeerId, ...] = ()  # the peers that gave the run's settings
        self._found: deque[str] = deque(maxlen=ADDRESSES_HEARD)  # on the local network
        self._useless: dict[str, str] = {}  # addresses whose run this daemon can never be of -> why
        self._changed = Signal()
        self._adopting = asyncio.Lock()  # several peers may offer a run at once

    def settings(self) -> Settings | None:
        """What others are told of the run."""
        return Settings(to_plain(self.run), fingerprint(self.run)) if self.run else None

    async def begin(self, run: RunConfig) -> None:
        """Begins a run, or goes on with one from checkpoints; where others of it still live, joins them. Raises
        ConfigError.
        """
        if why := self._unfit(run):
            raise ConfigError(f"{why}; give a smaller model, more stages, or a larger device.")
        self._check_home(run)
        if self.known is not None and self.resume:
            await self._look_for_living(self.known, run)
        elif self.known is not None and self._home.has_checkpoints():
            raise ConfigError(
                f"{self._home.path} holds checkpoints of this run: add --resume to go on from them, "
                "or choose another --home to begin anew."
            )
        if self.run is None:
            self.resume = self.resume and self.is_checkpointed()  # else it begins
            log.log(NOTICE, "run %s (%s): %d steps, %d stages", run.name, fingerprint(run), run.steps, run.model.stages)
            self.run = run

    def is_checkpointed(self) -> bool:
        """Whether the run has come to a version that is on disks, as far as this home knows."""
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

    def _unfit(self, run: RunConfig) -> str:
        """Why nothing of a run can be done here, in a sentence; nothing is allocated for one that is far too large."""
        wanted = self._config.stage
        exists = wanted is not None and wanted < run.model.stages
        return unfit(run, self._membership.own.memory_bytes, wanted if exists else None)

    async def _look_for_living(self, known: RememberedRun, run: RunConfig) -> None:
        """Joins the run if one of the peers that this home knew still works at it. Raises ConfigError if they work at
        it for another number of steps than it is to have here.
        """
        troubles: list[ConfigError] = []

        async def try_it(address: str) -> None:
            try:
                await self._adopt(address, instead_of=run)
            except ConfigError as trouble:
                troubles.append(trouble)
            except (SwarmError, TimeoutError) as trouble:
                log.debug("nobody of the run at %s: %s", address, trouble)

        self.looking = _looking(known.peers)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LIVING_SECONDS):
                await asyncio.gather(*(try_it(address) for address in known.peers))
        self.looking = None
        if self.run is None and troubles:
            raise troubles[0]

    async def find(self, *, idle: bool) -> None:
        """Takes the run's settings from the first peer that gives them; one that is silent keeps nobody waiting."""
        self.idle = idle
        if idle:
            log.log(NOTICE, "idle: `swarmctl join --bootstrap MULTIADDR` makes this daemon join a swarm")
            await self._changed.until(lambda: self.run is not None)
            return
        remembered = self._home.remembered()
        addresses = self._config.bootstrap or (remembered.bootstrap if remembered and not self._config.mdns else ())
        patient = not self._config.bootstrap
        deadline = time.monotonic() + JOIN_PATIENCE_SECONDS
        while self.run is None:
            self.looking = self.looking or _looking(addresses)
            troubles = await self._try_all((*addresses, *self._found))
            if self.run is not None:
                self.looking = None
                return
            if self._config.bootstrap and all(it in self._useless for it in self._config.bootstrap):
                raise ConfigError(f"{self._useless[self._config.bootstrap[0]]}; join another run with --bootstrap.")
            self.looking = dataclasses.replace(self.looking, tried="; ".join(troubles) or "nobody was heard of yet")
            if not patient and time.monotonic() > deadline:
                raise PeerUnreachable(f"no bootstrap peer gave the run's settings: {'; '.join(troubles)}")
            await self._changed.wait(JOIN_RETRY_SECONDS)

    async def _try_all(self, addresses: Sequence[str]) -> list[str]:
        """Asks at all addresses at once, until one gives a run. Returns why the others didn't."""
        troubles = []
        tries = [asyncio.create_task(self._try_to_adopt(address)) for address in addresses]
        try:
            for attempt in asyncio.as_completed(tries):
                if not (trouble := await attempt):
                    break
                troubles.append(trouble)
        finally:
            for one in tries:
                one.cancel()
            await asyncio.gather(*tries, return_exceptions=True)
        return troubles

    async def _try_to_adopt(self, address: str) -> str:
        """Why the run's settings couldn't be had there, or nothing. Raises ConfigError for a bad address."""
        try:
            await self._adopt(address)
        except (PeerUnreachable, TimeoutError, Refused, PeerFault) as trouble:
            log.info("%s: %s", address, trouble)
            return f"{address}: {trouble}"
        return ""

    async def _adopt(self, address: str, instead_of: RunConfig | None = None) -> None:
        """Asks the peer at an address for the run's settings and makes them this daemon's. `instead_of`: the run that
        this daemon goes on with otherwise; others are passed over.
        """
        from swarmd.settings import run_from_plain

        if self.run is not None:
            return
        peer = await self._transport.connect(address)
        settings = await self._links.ask_settings(peer)
        try:
            run = run_from_plain(settings.run, "the run's settings")
        except ConfigError as trouble:
            self._useless[address] = f"the peer at {address} gave settings that this version can't use: {trouble}"
            raise Refused(f"it gave settings that this version can't use: {trouble}") from None
        if fingerprint(run) != settings.fingerprint:
            raise Refused("its settings don't have the fingerprint it claims; one of the two is of another version")
        if why := self._unfit(run):
            self._useless[address] = why
            raise Refused(why)
        async with self._adopting:
            if self.run is not None or not _is_same(run, instead_of):
                return
            self._check_home(run)
            self.run = run  # the greeting proves its fingerprint
            try:
                await self._links.greet(peer)
            except BaseException:
                self.run = None
                raise
            self.entries = (peer,)
        log.log(NOTICE, "joined run %s (%s) at %s", run.name, settings.fingerprint, address)
        if self.known is not None and self.known.fingerprint != settings.fingerprint:
            log.log(NOTICE, "it is the run of this home, which now has %d steps in all", run.steps)
        self._changed.notify()

    async def join(self, bootstrap: str) -> None:
        """Makes an idle daemon join, and remember it. Raises ConfigError, ControlError, SwarmError."""
        if self.run is not None:
            raise ControlError(
                f"this daemon already trains run {self.run.name}; stop it first, or give another --home."
            )
        self.looking = _looking((bootstrap,))
        try:
            await self._adopt(bootstrap)
        finally:
            self.looking = None
        self._home.remember(Remembered((bootstrap,), self._config.stage))

    def found(self, peer: PeerId, addresses: tuple[str, ...], run: str) -> None:
        """Another daemon on the local network; only one that has a run is of use."""
        new = [address for address in addresses if address not in self._found]
        if run and new and peer != self._transport.peer_id:
            self._found.extend(new)
            self._changed.notify()


def _looking(addresses: Sequence[str]) -> Wait:
    """For a run, at these addresses; on the local network if there are none."""
    advice = "`swarmctl join --bootstrap ADDRESS` gives another address"
    if not addresses:
        return Wait("a daemon on the local network that has a run", advice=advice)
    more = f" and {len(addresses) - 1} more" if len(addresses) > 1 else ""
    return Wait(f"the settings of a run from {addresses[0]}{more}", advice=advice)


def _is_same(living: RunConfig, ours: RunConfig | None) -> bool:
    """Whether a run that others work at is the one that this daemon would go on with, which may have been prolonged
    meanwhile. Raises ConfigError if it is to be prolonged here, while they work at it.
    """
    if ours is None or fingerprint(ours) in lineage(living):
        return True
    if lineage(ours)[0] != lineage(living)[0]:
        return False
    raise ConfigError(
        f"others still work at run {living.name}, which has {living.steps} steps for them: leave out --steps to join "
        f"them; to go on to {ours.steps} steps, stop them first (`swarmctl drain` on each), and start them after this."
    )
