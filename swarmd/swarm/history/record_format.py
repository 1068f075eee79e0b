"""The form in which a record travels, is kept and is hashed: bytes, which nobody makes again of what was read in them.

A record is two lines of JSON in ASCII. The first line has what decides the next version, and the record's hash is the
hash of exactly its bytes. The second line has what two conductors could see differently (`UNHASHED`). Both travel
together, and are passed on and kept as they came. This release writes the names of a line in order and without spaces,
so that two conductors who saw the same rounds write the same first line; a reader asks for no such thing, as a record
that is written otherwise merely has another hash.

What a record may hold is said by its format. Format 1 opens with the brace of its first line, which is what releases
hashed that sent records as plain data: so records of theirs keep their names. Every later format opens with its number.
A format's fields and their bounds never change: another field has a format of its own, and a release that doesn't know
that refuses the record. Pure; `record.py` says what the fields mean, `record_codec.py` which values they may have.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from swarmd.errors import PeerFault, UnknownFormat
from swarmd.swarm.wire.messages.fields import RECORD_BYTES
from swarmd.values import Buffer

UNHASHED = ("conductor", "seconds", "validation_loss", "ballot", "forked", "why")

LATER: tuple[tuple[str, object], ...] = (
    ("total_steps", 0),
    ("continues", ""),
    ("skips", 0),
    ("broke_at", 0),
    ("ends", False),
)
"""Fields of format 1 that came after the first release, and their defaults: only what differs from these is written, so
that older records keep their names.
"""

LATER_FORMAT = re.compile(rb"(?:[2-9]|[1-9][0-9]{1,8})(?![0-9])")
"""The opening of a record of a format other than 1."""


def write_record(plain: Mapping[str, Any]) -> bytes:
    """A record as this release writes it, of its fields as plain data. Raises ValueError for a number that isn't
    finite.
    """
    defaults = dict(LATER)
    hashed = {
        name: value
        for name, value in plain.items()
        if name not in UNHASHED and (name not in defaults or value != defaults[name])
    }
    beside = {name: value for name, value in plain.items() if name in UNHASHED}
    return canonical(hashed) + b"\n" + canonical(beside)


def canonical(content: Mapping[str, Any]) -> bytes:
    """The line of JSON that every conductor writes alike."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def digest(line: bytes) -> str:
    """The name of what is in a line."""
    return hashlib.blake2b(line, digest_size=16).hexdigest()


def hash_of(raw: bytes) -> str:
    """The hash of a record: that of its first line."""
    return digest(raw.partition(b"\n")[0])


def with_beside(raw: bytes, beside: Mapping[str, Any]) -> bytes:
    """The same record with another second line."""
    return raw.partition(b"\n")[0] + b"\n" + canonical(beside)


def read_record(raw: Buffer) -> dict[str, Any]:
    """The fields of a record as plain data, of which nothing is checked but where they are. Raises PeerFault;
    UnknownFormat for a later release's.
    """
    data = bytes(raw)
    if (opening := LATER_FORMAT.match(data)) is not None:
        raise UnknownFormat(f"a record of format {int(opening[0])}: this release knows none but format 1")
    if len(data) > RECORD_BYTES:
        raise PeerFault(f"not a commit record: it has {len(data)} bytes, and not up to {RECORD_BYTES}")
    first, _, second = data.partition(b"\n")
    try:
        hashed, beside = _read_line(first), _read_line(second)
    except ValueError as trouble:
        raise PeerFault(f"not a commit record: {trouble}") from None
    if not hashed.keys().isdisjoint(UNHASHED) or not beside.keys() <= set(UNHASHED):
        raise PeerFault("not a commit record: a field of it is in the wrong line")
    return {**hashed, **beside}


def _read_line(line: bytes) -> dict[str, Any]:
    """Raises ValueError."""
    try:
        content = _JSON.decode(line.decode("ascii"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError("a line of it is no table")
    return content


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _only_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A table of JSON. One that has a name twice would be read one way here and another way elsewhere."""
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a name is in it twice")
    return content


_JSON = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_only_once)
