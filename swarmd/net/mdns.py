"""Finds other daemons on the local network by multicast DNS, without blocking the event loop.

Announces a service of our own with the peer's multiaddrs and its run's fingerprint in the TXT record, and calls back
for each other peer's. Relies on zeroconf's asyncio side. What it hears is anybody's word: sizes are bounded here, and
who it really is shows only when it is dialled.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

from zeroconf import Error as ZeroconfError
from zeroconf import IPVersion, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from swarmd.errors import ConfigError
from swarmd.net import addresses as multiaddrs
from swarmd.values import PeerId

SERVICE = "_swarmd._tcp.local."
ANSWER_MS = 2000  # for a service that was seen to tell its details
ADDRESSES = 8  # of one peer; an mDNS packet holds about 1,400 bytes
ASKING = 32  # services asked for details at once; more are left until they announce themselves again
WORD_CHARACTERS = 64  # of a fingerprint, and of a machine's name
STOP_S = 2.0  # for the word that we leave

Found = Callable[[PeerId, tuple[str, ...], str, str], None]
"""Hears of a peer: its id, its multiaddrs, the fingerprint of its run ("" while it has none), and its machine as on its
card. Must not raise.
"""

log = logging.getLogger(__name__)


class Discovery:
    """This peer's announcement and its ear. From `start` to `close`."""

    def __init__(self, zeroconf: AsyncZeroconf, peer: PeerId, found: Found, machine: str = "") -> None:
        self._zeroconf = zeroconf
        self._peer, self._machine = peer, machine
        self._found = found
        self._info: AsyncServiceInfo | None = None
        self._browser: AsyncServiceBrowser | None = None
        self._asking: set[asyncio.Task[None]] = set()

    @classmethod
    async def start(
        cls,
        peer: PeerId,
        addresses: Sequence[str],
        fingerprint: str,
        found: Found,
        *,
        machine: str = "",
        interfaces: Sequence[str] | None = None,
    ) -> "Discovery":
        """Announces and listens. Raises ConfigError where the machine has no multicast."""
        try:
            zeroconf = (
                AsyncZeroconf(interfaces=list(interfaces), ip_version=IPVersion.V4Only)
                if interfaces
                else AsyncZeroconf()
            )
        except OSError as error:
            raise ConfigError(f"no local network for mDNS ({error.strerror}); start without --mdns") from error
        discovery = cls(zeroconf, peer, found, machine)
        try:
            await discovery.announce(addresses, fingerprint)
            discovery._browser = AsyncServiceBrowser(zeroconf.zeroconf, SERVICE, handlers=[discovery._on_change])
        except BaseException:
            await discovery.close()
            raise
        return discovery

    async def announce(self, addresses: Sequence[str], fingerprint: str) -> None:
        """Says where this peer is and which run it has; again when that changes."""
        info = _describe(self._peer, addresses, fingerprint, self._machine)
        known, self._info = self._info, info
        register = self._zeroconf.async_register_service if known is None else self._zeroconf.async_update_service
        try:
            await (await register(info))
        except (OSError, ZeroconfError) as error:
            log.warning("mDNS can't announce this peer: %s", error)

    async def close(self) -> None:
        """Says goodbye and stops listening."""
        for task in self._asking:
            task.cancel()
        with contextlib.suppress(TimeoutError, OSError, ZeroconfError):
            async with asyncio.timeout(STOP_S):
                if self._browser is not None:
                    await self._browser.async_cancel()
                await self._zeroconf.async_unregister_all_services()
        await self._zeroconf.async_close()

    def _on_change(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        if (
            state_change is ServiceStateChange.Removed
            or name == f"{self._peer}.{SERVICE}"
            or len(self._asking) >= ASKING
        ):
            return
        task = asyncio.get_running_loop().create_task(self._ask(zeroconf, name))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _ask(self, zeroconf: Zeroconf, name: str) -> None:
        try:
            info = AsyncServiceInfo(SERVICE, name)
            if await info.async_request(zeroconf, ANSWER_MS):
                self._hear(info.decoded_properties)
        except (OSError, ValueError, ZeroconfError) as error:
            log.debug("mDNS: %s is not understood: %s", name, error)

    def _hear(self, properties: dict[str, str | None]) -> None:
        texts = [properties.get(f"a{index}") for index in range(ADDRESSES)]
        addresses = [address for text in texts if text and (address := multiaddrs.parse(text)) and address.peer]
        peers = {address.peer for address in addresses}
        fingerprint, machine = properties.get("run") or "", properties.get("machine") or ""
        if len(peers) == 1 and self._peer not in peers and max(len(fingerprint), len(machine)) <= WORD_CHARACTERS:
            self._found(peers.pop(), tuple(map(str, addresses)), fingerprint, machine)


def _describe(peer: PeerId, addresses: Sequence[str], fingerprint: str, machine: str) -> AsyncServiceInfo:
    parsed = [address for text in addresses if (address := multiaddrs.parse(text))][:ADDRESSES]
    properties: dict[str, Any] = {f"a{index}": str(address) for index, address in enumerate(parsed)}
    return AsyncServiceInfo(
        SERVICE,
        f"{peer}.{SERVICE}",
        port=parsed[0].port if parsed else 0,
        parsed_addresses=[address.host for address in parsed if address.family in ("ip4", "ip6")],
        properties={**properties, "run": fingerprint, "machine": machine},
        server=f"{peer}.local.",
    )
