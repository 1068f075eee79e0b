"""Commit records as the checkpoints of this machine hold them: as text, or, from older releases, as plain data."""

from swarmd.config import RunConfig
from swarmd.errors import ConfigError
from swarmd.stage.checkpoint import KeptRecord
from swarmd.swarm.history.record import recut
from swarmd.swarm.history.record_codec import UNREADABLE, record_from_raw
from swarmd.swarm.history.record_format import write_record


def raw_of(kept: KeptRecord) -> bytes:
    """The bytes that peers exchange: those that were saved, or, of an older release's, those that it hashed. What can't
    be written is no record, and has none.
    """
    if isinstance(kept, str):
        return kept.encode(errors="surrogatepass")  # what isn't ASCII is refused where it is read
    try:
        return write_record(kept)
    except (ValueError, RecursionError):
        return b""


def text_of(raw: bytes) -> str:
    """The text of a record in a manifest."""
    return raw.decode("ascii")


def cut_anew(run: RunConfig, kept: KeptRecord, stages: int) -> str:
    """A record of a run as one of the same run in other stages. Raises ConfigError."""
    try:
        record = record_from_raw(run, raw_of(kept))
    except UNREADABLE as trouble:
        raise ConfigError(
            f"the newest checkpoints hold no record of their run ({trouble}); name other homes."
        ) from None
    return text_of(recut(record, stages).raw)
