"""A release reads what all before it wrote in the same protocol: messages of every kind, a handshake, refusals."""

from typing import Any

import pytest

from swarmd.errors import CODES, Refused, refusal_of
from swarmd.net import frames
from swarmd.net.frames import Decoder, Envelope
from swarmd.swarm.wire.framing import KINDS, from_frame, to_frame
from swarmd.swarm.wire.messages.presence import Hello
from tests.swarm.wire.nodes import Node, meet
from tests.wire import record
from tests.wire.record import ANSWERED, ASKED, FOLDER, LANE


def recorded(name: str) -> Envelope:
    (envelope,) = Decoder((LANE,), frames.HEADER_BYTES).feed((FOLDER / name).read_bytes())
    return envelope


def test_everything_is_recorded() -> None:
    """A kind that is missing has come since: `python -m tests.wire.record` adds it. One that is gone isn't read any
    more, so the protocol is another one.
    """
    assert {path.name for path in FOLDER.iterdir()} == set(record.recordings())


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_of_every_kind_is_read_with_all_that_it_says(kind: str) -> None:
    frame = recorded(kind).frame
    assert frame is not None
    again = to_frame(from_frame(frame))
    assert (again.kind, tuple(map(bytes, again.buffers))) == (kind, tuple(map(bytes, frame.buffers)))
    assert _is_within(frame.body, again.body)


def _is_within(old: Any, new: Any) -> bool:
    """True if everything of a recorded value is in what this release says instead, which may say more."""
    if isinstance(old, dict):
        return all(name in new and _is_within(value, new[name]) for name, value in old.items())
    if isinstance(old, list):
        return len(old) == len(new) and all(_is_within(*pair) for pair in zip(old, new, strict=True))
    return bool(old == new)


def test_a_recorded_handshake_is_answered_and_taken() -> None:
    async def test(a: Node, b: Node) -> None:
        asked, answered = recorded(ASKED).frame, recorded(ANSWERED).frame
        assert asked is not None
        assert answered is not None
        for frame, peer, known in ((asked, "12D3KooWOne", 0), (answered, "12D3KooWTwo", 3)):
            hello = from_frame(frame)
            assert isinstance(hello, Hello)
            assert (hello.card.peer, hello.card.state, hello.known_incarnation) == (peer, "serving", known)
            a.links._check_hello(peer, hello)
            reply = from_frame(await a.links._answer(peer, frame))
            assert isinstance(reply, Hello)

    meet(test, run="0123456789abcdef")


@pytest.mark.parametrize("code", ["", *CODES])
def test_recorded_refusals_are_what_they_were(code: str) -> None:
    envelope = recorded(f"refusal-{code}" if code else "refusal")
    refusal = refusal_of(envelope.code, envelope.sentence, envelope.numbers)
    assert (envelope.type, type(refusal)) == (frames.REFUSAL, CODES.get(code, Refused))
    assert recorded("busy").type == frames.BUSY


def test_nothing_that_is_recorded_is_written_again(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "FOLDER", tmp_path)
    assert record.main() == 0
    (tmp_path / "Hop").write_bytes(b"as it was")
    (tmp_path / "Beat").unlink()
    assert record.main() == 0
    assert record.main() == 1
    assert (tmp_path / "Hop").read_bytes() == b"as it was"
    assert (tmp_path / "Beat").read_bytes() == record.recordings()["Beat"]
