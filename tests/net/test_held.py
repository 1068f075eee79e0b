"""The bytes that unfinished messages hold, as the transport counts them over all connections."""

import struct

import pytest

from swarmd.errors import PeerFault
from swarmd.net.frames import LANES
from tests.fuzz.targets.channel import Wire

BEGUN = struct.pack("!I", LANES.index("bulk") << 24 | 24) + struct.pack("!I", 50) + bytes(20)
"""The first bytes of a message."""
NO_CHUNK = struct.pack("!I", LANES.index("hop") << 24)


async def test_a_connection_that_is_over_is_counted_no_more() -> None:
    """What came with the fault was held when it was noticed; the other stream's reader has bytes in its hand."""
    wire = Wire()
    with pytest.raises(PeerFault) as caught:
        wire._take(wire.wired[0], "bulk", BEGUN + NO_CHUNK)
    wire.fault(wire.wired[0], caught.value)
    wire._take(wire.wired[0], "control", b"late")
    assert wire._partial_bytes == 0


async def test_what_is_held_is_counted_until_a_connection_is_over() -> None:
    wire = Wire()
    wire._take(wire.wired[2], "bulk", BEGUN)
    assert wire._partial_bytes == len(BEGUN) - 4
    wire._end(wire.wired[2], "it is over", abort=False)
    wire._take(wire.wired[2], "bulk", b"late")
    assert wire._partial_bytes == 0
