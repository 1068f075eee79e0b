"""Bounds on what one daemon takes from its peers and keeps for them.

Plain numbers; `frames`, `outbox`, `channel` and `libp2p` enforce them. The defaults suit 16 GB of memory.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from swarmd.values import Size


@dataclass(frozen=True)
class TransportLimits:
    """Bounds of the wire. What lies above them costs the peer its connection, or makes the own caller wait."""

    message_bytes: int = 256 << 20  # largest message, header and payload; the largest state chunk plus room
    sizes: Mapping[str, Size] = field(default_factory=dict)  # largest messages by kind; of others only message_bytes
    partial_bytes_per_peer: int = 1 << 30  # of messages that have begun and not ended, over all connections of a peer
    partial_bytes: int = 4 << 30  # the same over all peers; above it the peer that holds most is cut
    serving_per_peer: int = 256  # requests being answered at once for one connection; the next is answered `busy`
    unsent_bytes: int = 256 << 20  # queued per connection and urgency; a sender waits for room
    unsent_control_bytes: int = 4 << 20  # the same for small words; a peer that takes none of 4 MiB is not alive
    unsent_messages: int = 4096  # queued per connection and urgency, so that tiny messages are bounded too
    connections: int = 1024  # open at once, accepted and dialled; 2 file descriptors each at most
    connections_per_peer: int = 8  # both sides dialling makes 2; more is a fault or an attack
    connections_per_address: int = 512  # accepted from one, in their handshake too: half, so that others find room
    handshakes_burst: int = 256  # accepted from one address at once; a large swarm behind a NAT finds a peer again
    handshakes_per_s: float = 30.0  # after these; one costs about 3 ms, who it is shows at its end
    strangers_burst: int = 64  # of these, with peers that aren't known: a whole swarm that joins at once
    strangers_per_s: float = 12.0  # after these; streams and a greeting cost about 15 ms
    returns_burst: int = 16  # connections of one known peer at once; one whose line is poor has that many a minute
    returns_per_s: float = 1.0  # after these
    turned_away_s: float = 10.0  # a peer of another run or release is refused without a word after its greeting
    streams_per_connection: int = 64  # we use 2, identify and gossip about 6
    buffered_per_connection: int = 48 << 20  # bytes in the muxer nobody has read; two honest windows are 32 MiB
    pending_replies: int = 256  # muxer answers (ping, window) waiting for a full socket; more is a flood
    connection_setup_s: float = 15.0  # a connection without both our streams after this is closed
    dial_s: float = 10.0  # until an address counts as unreachable, streams included
    dial_pause_s: float = 1.0  # after a peer couldn't be reached; doubles each time
    dial_pause_ceiling_s: float = 300.0  # of one that was never met: somebody only said that it is there
    dial_pause_met_s: float = 15.0  # of one that was; so long after a cut network is whole it may be found last
    dial_spacing_s: float = 1.0  # between two dials to one and the same address, whatever peer is said to be there
    dials_per_s: float = 8.0  # to addresses that never worked, of all peers together
    dials_burst: int = 256  # of these at once: a newcomer dials everyone near, in a large swarm some 200
    known_peers: int = 4096  # address book
    addresses_per_peer: int = 8
    gossip_burst: int = 32  # messages of one author that are passed on at once
    gossip_per_s: float = 4.0  # after these; a heartbeat comes every 2 s at most, a summary every 10 s
    unknown_gossip_burst: int = 256  # of all authors that aren't known here, by who brings them; far stages in most
    unknown_gossip_per_s: float = 64.0  # after these
    publishing: int = 64  # gossip messages on their way out; more are dropped


GOSSIP: dict[str, Any] = {
    "degree": 6,  # peers in a topic's mesh
    "degree_low": 4,
    "degree_high": 12,
    "heartbeat_interval": 1,  # seconds; with the library's 120, newcomers stay outside the mesh
    "prune_back_off": 3,  # seconds; with 60, some of those who join at once stay deaf and mute for a minute
    "unsubscribe_back_off": 1,
    "max_messages_per_topic_per_second": 1000,  # counted per forwarder, not per author
    "min_mesh_diversity_ips": 0,  # a swarm behind one address is legitimate
    "eclipse_protection_enabled": False,
    "adaptive_gossip_enabled": False,
}
"""GossipSub's own settings, tried with up to 28 peers."""

RESOURCES: dict[str, Any] = {
    "enable_memory_limits": False,  # a daemon whose memory is full of tensors must still be reachable
    "enable_circuit_breaker": False,  # a peer that fails often must not keep out the others
    "enable_graceful_degradation": False,
    "enable_metrics": False,
}
"""Settings of libp2p's resource manager that are not bounds."""
