"""Records how this release speaks: `python -m tests.wire.record`.

`tests/wire/PROTOCOL/` has a file of bytes, as they go into a stream, for each side of a handshake, for each kind of
refusal and for one message of every kind. Later releases of the protocol must read them (test_recorded.py), so a file
that is there is never written again: a kind that is new gets one, and another protocol gets a folder of its own.
"""

import dataclasses
import sys
from pathlib import Path

from swarmd.errors import CODES
from swarmd.net import frames
from swarmd.swarm.wire.framing import KINDS, to_frame
from swarmd.swarm.wire.messages.common import PROTOCOL
from swarmd.swarm.wire.messages.presence import Card, Hello
from swarmd.swarm.wire.own_card import first_card
from swarmd.values import Urgency
from tests.swarm.wire.samples import sample

FOLDER = Path(__file__).parent / str(PROTOCOL)
LANE: Urgency = "bulk"
ASKED, ANSWERED = "handshake-asked", "handshake-answered"


def greeting(peer: str, known: int) -> Hello:
    """The greeting of a peer that serves a stage."""
    card: Card = first_card(peer, 3, (f"/ip4/192.0.2.7/tcp/4001/p2p/{peer}",), "cpu", ("fp32", "int8"), "a1b2/c3d4")
    return Hello(PROTOCOL, "0123456789abcdef", dataclasses.replace(card, stage=1, state="serving"), known)


def recordings() -> dict[str, bytes]:
    """The bytes to be recorded, by the name of their file."""
    messages = {kind: frames.encode(frames.REQUEST, 1, to_frame(sample(kind))) for kind in KINDS}
    messages |= {
        ASKED: frames.encode(frames.REQUEST, 1, to_frame(greeting("12D3KooWOne", 0))),
        ANSWERED: frames.encode(frames.ANSWER, 1, to_frame(greeting("12D3KooWTwo", 3))),
        "busy": frames.encode_busy(1),
        "refusal": frames.encode_refusal(1, "there is nothing to give"),
        **{f"refusal-{code}": frames.encode_refusal(1, f"no: {code}", code, (4, 12)) for code in CODES},
    }
    return {name: b"".join(message.chunks(LANE)) for name, message in messages.items()}


def main() -> int:
    """Writes the files that are missing. Returns 1 if none is."""
    FOLDER.mkdir(exist_ok=True)
    missing = {name: data for name, data in recordings().items() if not (FOLDER / name).exists()}
    for name, data in missing.items():
        (FOLDER / name).write_bytes(data)
    print(f"{FOLDER.name}: {', '.join(missing) or 'nothing is missing, and nothing that is there is written again'}")
    return 0 if missing else 1


if __name__ == "__main__":
    sys.exit(main())
