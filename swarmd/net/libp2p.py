"""The Transport port on py-libp2p: TCP + Noise + Yamux and GossipSub, as a Trio guest on the running asyncio loop.

It and its parts yamux.py, pubsub.py and gate.py are the only files that import libp2p or trio. Both loops share one
thread, so there are no locks: asyncio code starts Trio tasks and sets their events directly, Trio code sets asyncio
futures; neither ever awaits the other's objects. A connection carries two streams of ours, each with one reader and one
writer task that live as long as it does and are never cancelled before: a cancelled read or write would break its
encryption. Deadlines live on the asyncio side (channel.py, outbox.py). What libp2p trusts too much is guarded here;
each guard says what happens without it.
"""

# ruff: noqa: BLE001, SLF001  # what the library raises ends one stream or connection; guards reach into its insides

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import libp2p.network.connection.swarm_connection as swarm_connection
import trio
from libp2p import new_host
from libp2p.abc import INetConn, INetStream
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.custom_types import TProtocol
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.rcmgr.connection_limits import ConnectionLimits
from libp2p.rcmgr.manager import ResourceLimits, ResourceManager
from libp2p.security.noise.exceptions import PeerIDMismatchesPubkey
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_ID
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX_ID
from libp2p.transport.exceptions import MuxerUpgradeFailure, SecurityUpgradeFailure
from multiaddr import Multiaddr

from swarmd.errors import ConfigError, PeerFault
from swarmd.net import addresses as multiaddrs
from swarmd.net import logs
from swarmd.net.channel import STREAMS, StreamName
from swarmd.net.gate import Gate
from swarmd.net.identity import load_or_create_seed
from swarmd.net.limits import RESOURCES, TransportLimits
from swarmd.net.listening import Reservation, reserve
from swarmd.net.pubsub import GuardedPubsub
from swarmd.net.transport import Connection, WireTransport
from swarmd.net.yamux import SafeYamux, cut, send_little_ahead
from swarmd.values import PeerId

log = logging.getLogger(__name__)

PROTOCOLS: dict[StreamName, TProtocol] = {name: TProtocol(f"/swarmd/1/{name}") for name in STREAMS}
READ_BYTES = 1 << 20  # each read of a stream sends a window frame, so reads are large
AGAIN_S = 0.02  # until one that refused a connection is dialled again: one of a flood of them gets through by chance
NEXT_ADDRESS_S = 0.3  # until the next address of a peer is tried beside one that doesn't answer
STREAM_S = 10  # for the other side to agree to a stream of ours
LENGTHY = re.compile(r"^Failed to open TCP stream to \S+: ")  # libp2p's first words: the address once more
CLOSE_S = 2.0  # for connections to be taken down; then the Trio side is cancelled

logs.route("libp2p", "swarmd.net.library")
# This module logs through the root logger, which installs a handler there; it gets a logger of its own under that name.
setattr(swarm_connection, "logging", logging.getLogger("libp2p.network.connection"))  # noqa: B010


def _is_of_another(error: BaseException | None) -> bool:
    """True if a dial failed because another peer answered, whose key is not that of the one who was dialled."""
    return _comes_of(error, PeerIDMismatchesPubkey)


def _was_refused(error: BaseException | None) -> bool:
    """True if a dial failed although somebody listens there, and it wasn't another peer."""
    return _comes_of(error, SecurityUpgradeFailure, MuxerUpgradeFailure) and not _is_of_another(error)


def _comes_of(error: BaseException | None, *kinds: type[BaseException]) -> bool:
    while error is not None and not isinstance(error, kinds):
        error = error.__cause__ or error.__context__
    return error is not None


class _Connection(Connection):
    """One libp2p connection and what belongs to it."""

    def __init__(self, muxed: Any, owner: "Libp2pTransport") -> None:
        self.muxed = muxed
        self._owner = owner
        self.streams: dict[StreamName, INetStream] = {}
        self.wakes: dict[StreamName, trio.Event] = {name: trio.Event() for name in PROTOCOLS}
        super().__init__(muxed.peer_id.to_base58(), owner)

    @property
    def host(self) -> str:
        remote = self.muxed.get_remote_address()
        return str(remote[0]) if remote else ""

    def wake(self, stream: StreamName) -> None:
        self.wakes[stream].set()

    def cut(self, *, abort: bool) -> None:
        cut(self.muxed, abort=abort)
        self._owner._begin(self._owner._renew_gossip, self)


class Libp2pTransport(WireTransport):
    """The swarm's `Transport`. From `start` to `close`; one at a time per thread, being a Trio guest run."""

    def __init__(self, seed: bytes, reservation: Reservation, limits: TransportLimits, incarnation: int) -> None:
        self._keys = create_new_key_pair(seed)
        super().__init__(ID.from_pubkey(self._keys.public_key).to_base58(), limits)
        self.reservation = reservation
        self._listen = [Multiaddr(address.transport) for address in reservation.addresses]
        self._by_muxed: dict[Any, _Connection] = {}
        self._ready, self._done = self._loop.create_future(), self._loop.create_future()  # without results
        self._incarnation = incarnation
        self._stopping = trio.Event()
        self._scope = trio.CancelScope()
        self._nursery: trio.Nursery
        self._host: Any = None
        self._gate = Gate(self._accept_pace, self.book.is_known, self._loop.time)
        self._gossip: GuardedPubsub

    # Life, on asyncio's side

    @classmethod
    async def start(
        cls,
        identity: Path,
        listen: Sequence[str],
        announce: Sequence[str] = (),
        limits: TransportLimits | None = None,
        kept_port: int = 0,
        incarnation: int | None = None,
    ) -> "Libp2pTransport":
        """Listens, tells others `announce` if given, can dial. Without `listen` it takes the kept port if that is
        free, else another. `incarnation`: higher than in every earlier life of the identity; None: the clock. Raises
        ConfigError (identity, address, busy port).
        """
        wanted, told = tuple(map(multiaddrs.parse_listened, listen)), tuple(map(multiaddrs.parse_announced, announce))
        seed = await asyncio.to_thread(load_or_create_seed, identity)
        reservation = reserve(wanted, kept_port)
        try:
            incarnation = time.time_ns() if incarnation is None else incarnation
            transport = cls(seed, reservation, limits or TransportLimits(), incarnation)
        except BaseException:
            reservation.release()
            raise
        transport.told = told
        trio.lowlevel.start_guest_run(
            transport._main,
            run_sync_soon_threadsafe=cast("Any", transport._loop.call_soon_threadsafe),
            run_sync_soon_not_threadsafe=cast("Any", transport._loop.call_soon),
            done_callback=transport._on_done,
            host_uses_signal_set_wakeup_fd=True,
        )
        try:
            await asyncio.wait((transport._ready, transport._done), return_when=asyncio.FIRST_COMPLETED)
            if not transport._ready.done():
                raise transport.failed.result()
            for address in reservation.addresses:
                if address.transport not in transport._host.get_network().listeners:
                    raise ConfigError(f"can't listen at {address}; choose another address or port with --listen")
            reservation.listening()
        except BaseException:
            await transport.close()
            raise
        return transport

    async def close(self) -> None:
        """Ends everything within about a second, stalled peers or not. May be called again."""
        if not self._closing:
            self._closing = True
            await self._flush()
            for connection in list(self._connections):
                self._end(connection, "this daemon is stopping", abort=False)
            self._stopping.set()
        await asyncio.wait((self._done,), timeout=CLOSE_S)
        if not self._done.done():
            self._scope.cancel()
            await asyncio.wait((self._done,), timeout=CLOSE_S)
        self.reservation.release()

    def _on_done(self, outcome: Any) -> None:
        self._network_ended(getattr(outcome, "error", None))
        self._done.set_result(None)

    def addresses(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(str(address) for address in self._host.get_addrs()))

    # Trio's main, and what it is made of

    async def _main(self) -> None:
        with self._scope:
            self._build()
            async with trio.open_nursery() as self._nursery:
                # A Pubsub that doesn't run blocks every dial and accept: it runs before the first and after the last.
                async with self._host.run(listen_addrs=self._listen), self._gossip.running():
                    self._gate.guard_listeners(self._host.get_network())
                    self._ready.set_result(None)
                    try:
                        await self._stopping.wait()
                    finally:
                        with trio.CancelScope(shield=True):
                            await self._take_down()
                self._nursery.cancel_scope.cancel()

    async def _take_down(self) -> None:
        swarm = self._host.get_network()
        with trio.move_on_after(CLOSE_S / 2):
            connections = swarm.get_connections()
            for connection in connections:
                cut(connection.muxed_conn, abort=False)
            for connection in connections:
                await connection.event_closed.wait()
        with trio.move_on_after(CLOSE_S / 2):
            await self._host.close()
        self._gossip.stop_thread()

    def _build(self) -> None:
        """Makes the host, with Noise and Yamux only: the defaults also offer plaintext."""
        noise = NoiseTransport(self._keys, noise_privkey=create_noise_key_pair().private_key)
        many, per_peer = self.limits.connections, self.limits.connections_per_peer
        self._host = new_host(
            key_pair=self._keys,
            listen_addrs=self._listen,
            muxer_opt={TProtocol(YAMUX_ID): SafeYamux},
            sec_opt={NOISE_ID: noise},
            disable_identify_address_discovery=True,
            addrs_factory=lambda found: [Multiaddr(text) for text in multiaddrs.announced(map(str, found), self.told)],
            connection_config=ConnectionConfig(many, 0, 0, many, max_connections_per_peer=per_peer),
            resource_manager=ResourceManager(
                limits=ResourceLimits(max_connections=2 * many),
                connection_limits=ConnectionLimits(max_established_total=many, max_established_per_peer=per_peer),
                **RESOURCES,
            ),
        )
        self._guard_swarm(self._host.get_network())
        self._gossip = GuardedPubsub(self._host, self, self._incarnation)

    def renumber(self, incarnation: int) -> None:
        """Numbers this peer's words from `incarnation` on: higher than in its earlier lives."""
        self._gossip.renumber(incarnation)

    def _guard_swarm(self, swarm: Any) -> None:
        upgrade, handle = swarm.upgrade_inbound_raw_conn, self._host._swarm_stream_handler

        async def leave_alone(*_: Any) -> None:
            """The library would redial every peer it ever knew, also those we dropped."""

        async def never_dial(peer: ID) -> Any:
            """Opening a stream would dial by itself."""
            raise SwarmException(f"no connection to {peer}")

        async def upgrade_and_stay(raw: Any, address: Any) -> Any:
            """The library keeps a task and a slot for every past connection: the 251st would be refused, for good."""
            muxed = await upgrade(raw, address)
            self._connection(muxed)
            await muxed.event_closed.wait()
            raise SwarmException("the connection is over")

        async def handle_guarded(stream: INetStream) -> None:
            """An exception here, from any bytes on any stream, would end the host."""
            try:
                if len(getattr(stream.muxed_conn, "streams", ())) > self.limits.streams_per_connection:
                    cut(stream.muxed_conn, abort=True)
                    return
                await handle(stream)
            except Exception as error:
                log.debug("a stream of %s ended with %r", stream.muxed_conn.peer_id, error)
                with trio.CancelScope(shield=True), contextlib.suppress(Exception):
                    await stream.reset()

        self._gate.guard(swarm)
        swarm.upgrade_inbound_raw_conn = upgrade_and_stay
        swarm.set_stream_handler(handle_guarded)
        swarm.auto_connector.maybe_connect = leave_alone
        swarm.dial_peer = never_dial
        swarm.retry_config = RetryConfig(max_retries=0)
        swarm._inbound_limiter = trio.CapacityLimiter(2 * self.limits.connections)  # half of them in their handshake
        for name, protocol in PROTOCOLS.items():
            self._host.set_stream_handler(protocol, partial(self._accept, name))

    def _begin(self, work: Callable[..., Awaitable[None]], *args: Any) -> None:
        self._nursery.start_soon(work, *args)

    # Dialling

    async def _dial(self, peer: PeerId, addresses: Sequence[multiaddrs.Address], done: asyncio.Future[None]) -> None:
        problem, others = "it does not answer", False
        try:
            with trio.move_on_after(self.limits.dial_s):
                connection, address = await self._first_to_answer(ID.from_base58(peer), addresses)
                await self._open_streams(connection)
                self.book.worked(peer, address)
                problem = ""
        except Exception as error:
            problem = LENGTHY.sub("", str(error.__cause__ or error)) or type(error).__name__
            others = _is_of_another(error)
        self._dialled(peer, addresses, done, problem, others=others)

    async def _first_to_answer(
        self, peer: ID, addresses: Sequence[multiaddrs.Address]
    ) -> tuple[INetConn, multiaddrs.Address]:
        """Each address once, the next beside it when one is slow; cancelling a handshake harms nobody."""
        found, problems = list[tuple[INetConn, multiaddrs.Address]](), list[Exception]()

        async def attempt(address: multiaddrs.Address, over: trio.Event, scope: trio.CancelScope) -> None:
            try:
                found.append((await self._dial_address(address, peer), address))
                scope.cancel()
            except Exception as error:
                problems.append(error)
                over.set()

        async with trio.open_nursery() as nursery:
            for address in addresses:
                over = trio.Event()
                nursery.start_soon(attempt, address, over, nursery.cancel_scope)
                with trio.move_on_after(NEXT_ADDRESS_S):
                    await over.wait()
        if not found:
            raise min(problems, key=_is_of_another)  # a peer that can't be reached may come yet
        for spare, _ in found[1:]:
            cut(spare.muxed_conn, abort=True)
        return found[0]

    async def _dial_address(self, address: multiaddrs.Address, peer: ID) -> INetConn:
        """A connection. A peer that many dial refuses some at its gate (gate.py): where one that is meant to be there
        does so, it is dialled again at once, for as long as a dial takes.
        """
        swarm, target = self._host.get_network(), Multiaddr(address.transport)
        while True:
            try:
                return cast("INetConn", await swarm.dial_addr(target, peer))
            except Exception as error:
                trusted = self._named[address] or address in self.book.known(peer.to_base58()).worked
                if not trusted or not _was_refused(error):
                    raise
            await trio.sleep(AGAIN_S)

    async def _open_streams(self, conn: Any) -> None:
        connection = self._connection(conn.muxed_conn)
        try:
            for name, protocol in PROTOCOLS.items():
                stream = await conn.new_stream()
                await self._host.multiselect_client.select_one_of([protocol], MultiselectCommunicator(stream), STREAM_S)
                self._adopt(connection, name, stream)
                self._nursery.start_soon(self._read, connection, name, stream)
        finally:
            if not connection.ready:
                self._end(connection, f"{connection.peer} did not open our streams", abort=True)

    # Connections and streams

    def _connection(self, muxed: Any) -> _Connection:
        connection = self._by_muxed.get(muxed)
        if connection is None:
            connection = self._by_muxed[muxed] = _Connection(muxed, self)
            self._connections.append(connection)
            muxed.limits = self.limits
            send_little_ahead(muxed)
            self._nursery.start_soon(self._watch, connection)
        return connection

    async def _watch(self, connection: _Connection) -> None:
        """Watches a connection to its end; cuts one that does not become ready."""
        with trio.move_on_after(self.limits.connection_setup_s):
            await connection.muxed.event_closed.wait()
        if not connection.ready:
            self._end(connection, f"{connection.peer} is connected but does not speak our protocol", abort=True)
        await connection.muxed.event_closed.wait()
        self._end(connection, f"{connection.peer} closed the connection", abort=True)
        del self._by_muxed[connection.muxed]

    async def _accept(self, name: StreamName, stream: INetStream) -> None:
        connection = self._connection(stream.muxed_conn)
        if name in connection.streams:
            self.fault(connection, PeerFault(f"a second {name} stream"))
            return
        self._adopt(connection, name, stream)
        await self._read(connection, name, stream)

    def _adopt(self, connection: _Connection, name: StreamName, stream: INetStream) -> None:
        connection.streams[name] = stream
        self._nursery.start_soon(self._write, connection, name, stream)
        if len(connection.streams) == len(PROTOCOLS) and not connection.channel.failed and not self._closing:
            self._set_ready(connection)

    async def _read(self, connection: _Connection, name: StreamName, stream: INetStream) -> None:
        try:
            while not connection.channel.failed:
                self._take(connection, name, await stream.read(READ_BYTES))
        except PeerFault as fault:
            self.fault(connection, fault)
        except Exception as error:
            self._end(connection, f"the connection to {connection.peer} broke ({error!r})", abort=True)

    async def _write(self, connection: _Connection, name: StreamName, stream: INetStream) -> None:
        outbox = connection.channel.outboxes[name]
        try:
            while not connection.channel.failed:
                connection.wakes[name] = trio.Event()
                chunk = outbox.next_chunk()
                if chunk is None:
                    await connection.wakes[name].wait()
                else:
                    await stream.write(chunk)
                    self._sent += len(chunk)
        except Exception as error:
            self._end(connection, f"the connection to {connection.peer} broke ({error!r})", abort=True)

    # Gossip

    async def _renew_gossip(self, connection: _Connection) -> None:
        self._gossip.renew(connection.muxed)

    async def _hear(self, topic: str) -> None:
        try:
            await self._gossip.hear(topic, self._deliver)
        finally:
            self._heard_no_more(topic)

    async def _publish(self, topic: str, data: bytes) -> None:
        try:
            await self._gossip.publish(topic, data)
        finally:
            self._publishing -= 1
