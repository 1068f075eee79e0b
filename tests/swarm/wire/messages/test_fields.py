"""Bounds of fields: whatever a run's settings allow is within them."""

from swarmd import config, settings
from swarmd.chunks import CHUNKS_LIMIT
from swarmd.net.frames import HEADER_BYTES
from swarmd.net.limits import TransportLimits
from swarmd.swarm.membership.table import MEMBERS_LIMIT
from swarmd.swarm.wire.messages import fields


def test_no_run_goes_beyond_the_bounds_of_messages() -> None:
    assert config.COUNT_LIMIT <= fields.STEP_LIMIT
    assert config.STAGES_LIMIT <= fields.STAGE_LIMIT
    assert settings.TOKENS_LIMIT <= fields.COUNT_LIMIT
    assert max(settings.MICROBATCHES_LIMIT, settings.VALIDATION_LIMIT) <= fields.INDEX_LIMIT


def test_a_set_of_microbatches_has_no_more_ranges_than_a_message_takes() -> None:
    """Every second one missing is the worst."""
    assert settings.MICROBATCHES_LIMIT <= 2 * fields.RANGES_LIMIT


def test_what_a_peer_remembers_fits_its_messages() -> None:
    assert MEMBERS_LIMIT + 1 <= fields.PEERS_LIMIT, "and itself"


def test_lists_and_buffers_fit_a_frame() -> None:
    """A range is two numbers of up to 5 bytes in a list, a hash a text with its length before it."""
    assert 3 * fields.RANGES_LIMIT * 11 < HEADER_BYTES, "AskLease has three"
    assert CHUNKS_LIMIT * (32 + 2) < HEADER_BYTES
    assert fields.PEERS_LIMIT * (fields.PEER_CHARACTERS + 2) < HEADER_BYTES
    assert max(fields.CHUNK_LIMIT_BYTES, fields.BUFFER_BYTES) <= TransportLimits().message_bytes
