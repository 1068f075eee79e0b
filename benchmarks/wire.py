"""Messages a second through the wire: a message to bytes (encode), and those bytes to a checked message (decode).

    python -m benchmarks.wire [--json | --wide]

One core, no socket: framing, msgpack and cutting into chunks. Times are of this process (not of the clock), so that
a busy machine changes them little.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks.forms import add_forms, table
from swarmd.layout import Column, FittedTable
from swarmd.net.frames import REQUEST, Decoder, encode
from swarmd.screen import show
from swarmd.swarm.history.record_format import write_record
from swarmd.swarm.wire.framing import SIZES, from_frame, to_frame
from swarmd.swarm.wire.messages.commit import Commit
from swarmd.swarm.wire.messages.common import Message
from swarmd.swarm.wire.messages.hop import Beat, Hop, HopBeat
from swarmd.swarm.wire.messages.presence import Announce, Card
from swarmd.values import Encoded

BATCH = 500  # messages timed in one go: more than the clock's grain
REPEATS = 21
PEER = "12D3KooWGzBqXFsMTtqvEn4dLpUu3ApMoZ2nMk4gpYKpJkRGjz6S"
HASH = "3f1c0a9be7d24f6685c2d3b1f0e9a7c4"
CARD = Card(
    peer=PEER,
    incarnation=1_730_000_000_000_000_000,
    sequence=4711,
    addresses=(f"/ip4/192.0.2.17/tcp/4001/p2p/{PEER}", f"/ip4/10.0.0.17/tcp/4001/p2p/{PEER}"),
    stage=2,
    state="serving",
    version=812,
    record_hash=HASH,
    tokens=53_215_232,
    data_digest=HASH,
    device="cuda:0",
    codecs=("int8", "fp16", "bf16", "fp32"),
    forward=2,
    backward=1,
    in_flight=5,
    room=3,
    service_seconds=0.125,
    microbatches_per_second=7.9,
)
ENTRY = {
    "stage": 0,
    "digest": HASH,
    "squared_norm": 0.25,
    "tokens": 65_536,
    "microbatches": 64,
    "resent": 0,
    "subtracted": 0,
    "lost": 0,
    "duplicated": 0,
    "members": [PEER] * 4,
    "holders": [PEER] * 4,
}
RECORD = {
    "step": 813,
    "parent": HASH,
    "stages": [{**ENTRY, "stage": stage} for stage in range(4)],
    "loss": 3.25,
    "tokens": 65_536,
    "grad_norm": 1.0,
    "clip_factor": 1.0,
    "learning_rate": 3e-4,
    "skipped": False,
    "total_tokens": 53_280_768,
    "moves": [],
    "conductor": PEER,
    "seconds": 11.5,
    "validation_loss": None,
    "ballot": [1, PEER],
    "forked": False,
    "after": "",
    "after_version": 0,
    "lives": [],
    "total_steps": 0,
    "continues": "",
    "skips": 0,
    "broke_at": 0,
    "ends": False,
    "why": "",
}
MESSAGES: dict[str, Message] = {
    "a hop of 64 KiB": Hop(
        813, 17, HASH, False, False, "int8", bytes(2048), Encoded("int8", (1, 128, 512), (bytes(65_536), bytes(512)))
    ),
    "a beat of 3 hops": Beat(tuple(HopBeat(813, index, "computing", 0.25) for index in range(3)), 99, 0.1, 0.2),
    "a card": Announce(CARD),
    "a commit of 4 stages": Commit(write_record(RECORD)),
}


def to_bytes(message: Message) -> bytes:
    """The message as it goes into a stream."""
    return b"".join(encode(REQUEST, 1, to_frame(message), SIZES).chunks("hop"))


def to_message(data: bytes) -> Message:
    """The message that a stream brings, checked."""
    (envelope,) = Decoder(("hop",), 1 << 30, SIZES).feed(data)
    assert envelope.frame is not None
    return from_frame(envelope.frame)


def rate(call: Callable[[Any], object], argument: Any) -> float:
    """The median of calls a second."""
    rates = []
    for _ in range(REPEATS):
        started = time.process_time()
        for _ in range(BATCH):
            call(argument)
        rates.append(BATCH / (time.process_time() - started))
    return statistics.median(rates)


def measure() -> dict[str, dict[str, int]]:
    """By message: its bytes, and how many a second are encoded and decoded."""
    figures = {}
    for name, message in MESSAGES.items():
        data = to_bytes(message)
        assert to_message(data) == message
        figures[name] = {
            "bytes": len(data),
            "encoded_per_second": round(rate(to_bytes, message)),
            "decoded_per_second": round(rate(to_message, data)),
        }
    return figures


_COLUMNS = (Column("message", right=False, wraps=True), Column("bytes", 1), Column("encoded/s"), Column("decoded/s"))


def render(figures: dict[str, dict[str, int]]) -> FittedTable:
    """A row for each message."""
    return table(_COLUMNS, [(name, *(f"{it:,}" for it in row.values())) for name, row in figures.items()])


def main() -> None:
    """Prints a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_forms(parser)
    arguments = parser.parse_args()
    figures = measure()
    if arguments.json:
        print(json.dumps(figures))
        return
    show(render(figures), wide=arguments.wide)


if __name__ == "__main__":
    main()
