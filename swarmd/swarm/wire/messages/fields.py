"""The fields that messages share, with their bounds, and the numbers in the bounds of others.

A bound is far above what an honest peer of any release sends, and low enough that nothing a stranger sends is a burden.
"""

from typing import Annotated

from swarmd.chunks import CHUNKS_LIMIT
from swarmd.swarm.wire.bounds import Ascending, AtMost, Between, Bytes, Text
from swarmd.values import Buffer, Encoded, PeerId

COUNT_LIMIT = 1 << 62  # of what is counted in 64 bits: tokens, bytes, elements
STEP_LIMIT = 1 << 41  # a run has half as many at most
STAGE_LIMIT = 1 << 12  # stages of a run
INDEX_LIMIT = 1 << 20  # places of microbatches in a step, or of parts and members in a plan
RANGES_LIMIT = 1 << 14  # of a set; the microbatches of a step are twice as many at most (swarmd/settings.py)
PEERS_LIMIT = 1 << 12  # members that are remembered: no stage has more
PARTS_LIMIT = 1 << 12  # of a gradient
NUMBER_LIMIT = 1e300  # squares of fp32 added up are far below, and thousands of these together are finite still
TALLY_LIMIT = 1 << 40  # of what one peer counted in a step: of thousands together 64 bits are enough
SQUARED_NORM_LIMIT = 1e200  # of a stage's fp32 gradient it is below 1e96; those of all stages have a finite sum
LOSS_LIMIT = 1e200  # of the losses in one sum: those of a stage's members together keep to NUMBER_LIMIT
SECONDS_LIMIT = 1e9  # thirty years
ATTEMPT_CHARACTERS = 128  # a peer id, its incarnation, a count
PEER_CHARACTERS = 64  # a peer id has 52
HASH_CHARACTERS = 64  # one has 32
WORD_CHARACTERS = 64  # names of states, codecs, devices, attempts
SENTENCE_CHARACTERS = 400
BUFFER_BYTES = 1 << 28  # of a transport's largest message
RECORD_BYTES = 1 << 21  # about 120 for a member: 10,000 of them are below
ADDRESS_CHARACTERS = 512  # some have 400
ADDRESSES_LIMIT = 64  # of a card; a machine with containers has dozens
ADDRESSES_CHARACTERS = 8192  # of all of them together; an honest one has some 100
MACHINE_CHARACTERS = 128  # two hashes
DEVICE_NAME_CHARACTERS = 96  # a processor's model may have 50
CODECS_LIMIT = 64  # there are five
FINAL_LIMIT = 256  # stages whose final state one peer keeps
SUMMARY_CARDS_LIMIT = 64  # 16 are sent
HOPS_LIMIT = 1 << 12  # in one beat or cancellation
CHECKPOINTS_LIMIT = 1 << 12  # on one disk
CHUNK_LIMIT_BYTES = 64 << 20  # 4 MiB are sent
STATE_LIMIT_BYTES = 1 << 40
INCARNATION_LIMIT = 1 << 62  # nanoseconds since 1970 get there in 2116
SEQUENCE_LIMIT = 1 << 53  # of a card in its incarnation: one each microsecond gets there in 285 years
BALLOT_LIMIT = 1 << 62  # of ballot numbers: conductors count up one by one, and nobody is followed far (consensus.py)
ARRIVALS_LIMIT = 1 << 53  # of the numbers that order newcomers

# The largest header of a message: all of it but its buffers. Each kind declares which of these is its own.
WORDS_BYTES = 4 << 10  # words, names and numbers, none of them many
CARD_BYTES = 20 << 10  # with a card, that has all its addresses
SUMMARY_BYTES = 64 << 10  # of the gossip's largest message
SETS_BYTES = 640 << 10  # with sets of microbatches, or the members of a stage
LARGE_BYTES = 1 << 20  # with a plan, the hashes of a state or everybody's cards: no transport takes more

Peer = Annotated[PeerId, Text(PEER_CHARACTERS)]
"""A peer's id; "": nobody."""

Hash = Annotated[str, Text(HASH_CHARACTERS)]
"""The hash of a record, or a digest; "": none."""

Attempt = Annotated[str, Text(ATTEMPT_CHARACTERS)]
"""The name of an attempt at a round; "": none."""

Address = Annotated[str, Text(ADDRESS_CHARACTERS)]
Word = Annotated[str, Text(WORD_CHARACTERS)]
Sentence = Annotated[str, Text(SENTENCE_CHARACTERS)]

Step = Annotated[int, Between(0, STEP_LIMIT)]
"""A step or version."""

Stage = Annotated[int, Between(-1, STAGE_LIMIT)]
"""A stage; -1: none, or any."""

Index = Annotated[int, Between(0, INDEX_LIMIT)]
"""The place of a microbatch in its step."""

PartNumber = Annotated[int, Between(0, PARTS_LIMIT)]
"""The place of a part in a plan, or in a gradient."""

ChunkNumber = Annotated[int, Between(0, CHUNKS_LIMIT)]
"""The place of a chunk in a state."""

Incarnation = Annotated[int, Between(0, INCARNATION_LIMIT)]
Arrival = Annotated[int, Between(0, ARRIVALS_LIMIT)]
Tally = Annotated[int, Between(0, TALLY_LIMIT)]
"""A count that is added to those of others."""

Count = Annotated[int, Between(0, COUNT_LIMIT)]
Seconds = Annotated[float, Between(0.0, SECONDS_LIMIT)]
Amount = Annotated[float, Between(0.0, NUMBER_LIMIT)]
"""A number that is measured and not negative."""

LossSum = Annotated[float, Between(0.0, LOSS_LIMIT)]
"""The losses in one sum."""

SquaredNorm = Annotated[float, Between(0.0, SQUARED_NORM_LIMIT)]

Machine = Annotated[str, Text(MACHINE_CHARACTERS)]
"""HOST/NETWORK, hashed: equal HOSTs are one machine, equal NETWORKs share the loopback."""

Peers = Annotated[tuple[Peer, ...], AtMost(PEERS_LIMIT)]

Ranges = Annotated[tuple[tuple[int, int], ...], AtMost(RANGES_LIMIT), Ascending(INDEX_LIMIT)]
"""A set of indices as sorted half-open ranges."""

Payload = Annotated[Buffer, Bytes(BUFFER_BYTES)]
Tensor = Annotated[Encoded, Bytes(BUFFER_BYTES)]

RawRecord = Annotated[Buffer, Bytes(RECORD_BYTES)]
"""A record as the bytes that were hashed, and what goes with them (swarmd/swarm/history/record_format.py); empty:
none.
"""
