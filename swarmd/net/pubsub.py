"""Gossip on py-libp2p's Pubsub and GossipSub, on the Trio side, with guards where the library trusts too much.

Each guard says what happens without it.
"""

# ruff: noqa: BLE001, SLF001  # what the library raises ends one stream or topic; guards reach into its insides

import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, cast

import libp2p.peer.peer_record as peer_record
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.tools.anyio_service import background_trio_service

from swarmd.net.gossip_pace import GossipPace
from swarmd.net.limits import GOSSIP
from swarmd.net.transport import TOPIC_PREFIX, OurTopics, WireTransport
from swarmd.values import PeerId

RPC_BYTES = 1 << 20  # where honest senders split; lower would cut those who replay recent messages to a newcomer

log = logging.getLogger(__name__)


class GuardedPubsub:
    """The gossip of one host, that a peer can't end."""

    def __init__(self, host: Any, owner: WireTransport, incarnation: int) -> None:
        self._owner = owner
        self._router = GossipSub([PROTOCOL_ID_V11], **GOSSIP)
        self.inner = cast("Any", Pubsub(host, self._router, max_inbound_rpc_size=RPC_BYTES))
        self._registering: set[ID] = set()
        self._pace = GossipPace(owner.limits)
        self.inner.allowed_topics = OurTopics()
        self.inner._handle_new_peer = partial(self._register, self.inner._handle_new_peer)
        self.inner._forget_all_subscriptions = partial(self._forget, self.inner._forget_all_subscriptions)
        self.inner.push_msg = partial(self._push, self.inner.push_msg)
        self.inner.validate_msg = partial(self._validate, self.inner.validate_msg)
        self.renumber(incarnation)

    def renumber(self, incarnation: int) -> None:
        """Numbers this peer's words from `incarnation` on. By its clock a restarted peer may repeat numbers: then
        others take its gossip for old for two minutes, and its signed addresses for outdated for good.
        """
        self.inner.counter = max(self.inner.counter, incarnation)
        with peer_record._last_timestamp_lock:
            peer_record._last_timestamp = max(peer_record._last_timestamp, incarnation)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Takes part in gossip while the block runs."""
        async with background_trio_service(self.inner), background_trio_service(self._router):
            await self.inner.wait_until_ready()
            yield

    def stop_thread(self) -> None:
        """Ends the thread that forgets seen messages."""
        self.inner.seen_messages.stop()

    async def hear(self, topic: str, deliver: Callable[[str, PeerId, bytes], bool]) -> None:
        """Delivers a topic's messages until one comes that nobody wants: a topic is left with the first word after
        `unsubscribe`.
        """
        try:
            subscription = await self.inner.subscribe(TOPIC_PREFIX + topic)
            message = await subscription.get()
            # The author is signed: libp2p has checked the signature against the key of this id.
            while deliver(topic, ID(message.from_id).to_base58(), message.data):
                message = await subscription.get()
            await self.inner.unsubscribe(TOPIC_PREFIX + topic)
        except Exception as error:  # the topic falls silent, as gossip may
            log.warning("gossip on %s ended: %r", topic, error)

    async def publish(self, topic: str, data: bytes) -> None:
        """Sends gossip, if it can be sent."""
        try:
            await self.inner.publish(TOPIC_PREFIX + topic, data)
        except Exception as error:
            log.debug("gossip on %s not sent: %r", topic, error)

    def renew(self, muxed: Any) -> None:
        """Pubsub keeps a dead stream for good when the peer is back before the library noticed that it was gone."""
        stream = self.inner.peers.get(muxed.peer_id)
        if stream is not None and stream.muxed_conn is muxed:
            with contextlib.suppress(Exception):  # it is logged there; gossip with this peer starts anew later
                self.inner._handle_dead_peer(muxed.peer_id)

    async def _register(self, register: Callable[[ID], Awaitable[None]], peer: ID) -> None:
        """Pubsub gives a peer up for good when opening its stream fails otherwise than so, or does it twice at once."""
        if peer in self._registering:
            raise SwarmException("at it already")
        self._registering.add(peer)
        try:
            await register(peer)
        except Exception as error:
            raise SwarmException(str(error)) from error
        finally:
            self._registering.discard(peer)

    def _forget(self, forget: Callable[[ID], None], peer: ID) -> None:
        """Pubsub forgets with one dead stream what the peer told it over another connection, once and for all."""
        if peer.to_base58() not in self._owner.connected():
            forget(peer)

    async def _push(self, push: Callable[[ID, Any], Awaitable[None]], forwarder: ID, message: Any) -> None:
        """Takes a gossip message in, if its author has room for one. Without this a key that can't be decoded would end
        the host, and an author that says more than anyone has to say would have all of it checked and passed on.
        """
        try:
            if self._has_room(forwarder, message):
                await push(forwarder, message)
                return
            trouble: object = "its author says too much"
            if message.from_id == forwarder.to_bytes() and self._pace.is_flood(
                forwarder.to_base58(), self._owner.now()
            ):
                self._owner.turn_away(forwarder.to_base58(), "it gossips without end")
        except Exception as error:
            trouble = error
        self._owner.gossip_dropped += 1
        log.debug("gossip from %s dropped: %s", forwarder, trouble)

    def _has_room(self, forwarder: ID, message: Any) -> bool:
        return forwarder == self.inner.my_id or self._pace.has_room(*self._source(forwarder, message))

    def _source(self, forwarder: ID, message: Any) -> tuple[PeerId, PeerId, bool, float]:
        author = ID(message.from_id).to_base58()
        return author, forwarder.to_base58(), self._owner.book.is_known(author), self._owner.now()

    async def _validate(self, validate: Callable[[ID, Any], Awaitable[None]], forwarder: ID, message: Any) -> None:
        """A message counts to its author once its signature is checked: else anyone could use up another's share."""
        if forwarder != self.inner.my_id:
            self._pace.count(*self._source(forwarder, message), len(message.data))
        await validate(forwarder, message)
