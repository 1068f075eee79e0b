"""The bytes of records: they are hashed, kept and passed on as they came, and say their format."""

import hashlib
import json
from typing import Any

import pytest

from swarmd.errors import CODES, PeerFault, UnknownFormat
from swarmd.swarm.history.record import record_to_plain
from swarmd.swarm.history.record_codec import record_from_raw
from swarmd.swarm.history.record_format import UNHASHED, hash_of, read_record, write_record
from swarmd.swarm.wire.messages.fields import RECORD_BYTES
from tests.swarm.records import RUN, record, skipped

RAW = record(validation_loss=2.5).raw
FIRST, SECOND = RAW.split(b"\n")


def spaced(raw: bytes) -> bytes:
    """The same record as another program may write it: with spaces, and names in another order."""
    lines = [dict(reversed(json.loads(line).items())) for line in raw.split(b"\n")]
    return "\n".join(map(json.dumps, lines)).encode()


def test_the_hash_is_that_of_the_first_lines_bytes() -> None:
    it = record_from_raw(RUN, RAW)
    assert it.hash == hash_of(RAW) == hashlib.blake2b(FIRST, digest_size=16).hexdigest()
    assert {*json.loads(SECOND)} == {*UNHASHED}
    assert not {*json.loads(FIRST)} & {*UNHASHED}


@pytest.mark.parametrize("buffer", [bytes, bytearray, lambda raw: memoryview(bytearray(raw))])
def test_a_record_is_passed_on_as_it_came(buffer: Any) -> None:
    """Also where this release would write it otherwise: its name is that of the bytes, which nobody makes again."""
    for raw in (RAW, spaced(RAW), skipped().raw):
        it = record_from_raw(RUN, buffer(raw))
        assert type(it.raw) is bytes
        assert it.raw == raw
        assert it.hash == hash_of(raw)
    written, otherwise = record_from_raw(RUN, RAW), record_from_raw(RUN, spaced(RAW))
    assert written == otherwise
    assert written.state == otherwise.state, "the same parameters"
    assert written.hash != otherwise.hash


def test_under_another_ballot_the_hashed_bytes_are_the_same() -> None:
    it = record_from_raw(RUN, spaced(RAW))
    other = it.under((7, "n0"), forked=True)
    assert other.raw.split(b"\n")[0] == spaced(FIRST)
    assert other.hash == it.hash
    again = record_from_raw(RUN, other.raw)
    assert (again.ballot, again.forked, again.conductor, again.validation_loss) == ((7, "n0"), True, "c", 2.5)


@pytest.mark.parametrize("number", [2, 3, 10, 999_999_999])
def test_a_record_of_a_later_format_is_refused_and_no_fault(number: int) -> None:
    for rest in (RAW, b"\n" + RAW, b"\x00\xff", b""):
        with pytest.raises(UnknownFormat, match=f"a record of format {number}: this release knows none but format 1"):
            record_from_raw(RUN, b"%d" % number + rest)
    assert CODES["unknown_format"] is UnknownFormat


@pytest.mark.parametrize("opening", [b"0", b"1", b"01", b"-2", b" 2", b"9999999999"])
def test_what_opens_with_no_formats_number_is_a_fault(opening: bytes) -> None:
    with pytest.raises(PeerFault, match="not a commit record"):
        record_from_raw(RUN, opening + RAW)


def with_field(line: bytes, **field: Any) -> bytes:
    return json.dumps({**json.loads(line), **field}).encode()


FAULTS: dict[str, bytes] = {
    "nothing": b"",
    "one line": FIRST,
    "an empty second line": FIRST + b"\n",
    "three lines": RAW + b"\n" + SECOND,
    "the lines in the other order": SECOND + b"\n" + FIRST,
    "a list": b"[]\n[]",
    "a field in both lines": with_field(FIRST, forked=False) + b"\n" + SECOND,
    "a hashed field in the second line": FIRST + b"\n" + with_field(SECOND, skips=0),
    "a field that this format doesn't have": with_field(FIRST, later=1) + b"\n" + SECOND,
    "one in the second line": FIRST + b"\n" + with_field(SECOND, later=1),
    "a name twice": FIRST[:-1] + b',"step":4}\n' + SECOND,
    "no number": FIRST.replace(b'"loss":2.0', b'"loss":NaN') + b"\n" + SECOND,
    "an infinity": FIRST.replace(b'"loss":2.0', b'"loss":1e999') + b"\n" + SECOND,
    "letters beyond ASCII": FIRST.replace(b'"parent"', '"pärent"'.encode()) + b"\n" + SECOND,
    "UTF-16": RAW.decode().encode("utf-16"),
    "nested without end": b"[" * 100_000 + b"\n{}",
    "a number of many digits": FIRST.replace(b'"loss":2.0', b'"loss":' + b"9" * 100_000) + b"\n" + SECOND,
    "too long": FIRST + b"\n" + SECOND + b" " * RECORD_BYTES,
}


@pytest.mark.parametrize("raw", FAULTS.values(), ids=FAULTS.keys())
def test_what_no_release_writes_is_its_senders_fault(raw: bytes) -> None:
    with pytest.raises(PeerFault, match="not a commit record"):
        record_from_raw(RUN, raw)


def test_what_is_read_is_what_was_written() -> None:
    for it in (record(), skipped()):
        plain = read_record(it.raw)
        assert write_record(plain) == it.raw
        assert {**record_to_plain(it), **plain} == record_to_plain(it)
