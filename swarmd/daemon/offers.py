"""A run that another peer gives: its settings are asked for, read with distrust, and compared with what is wanted.

Relies on `Links` for the question. `run_search.py` decides whom to ask, and what a refusal means for the search.
"""

from swarmd.config import RunConfig, fingerprint, lineage
from swarmd.errors import ConfigError, Mismatch, Refused
from swarmd.swarm.wire.links import Links
from swarmd.swarm.wire.messages.common import PROTOCOL
from swarmd.swarm.wire.messages.presence import Settings
from swarmd.values import PeerId


class NoRun(Refused):
    """The peer is there and has no run to give."""


class AnotherRun(Refused):
    """The peer is of a run that isn't wanted here."""


class Prolonged(ConfigError):
    """Others work at the run, and this daemon is to prolong it."""


async def ask_settings(links: Links, peer: PeerId) -> Settings:
    """Asks a peer for its run's settings. Raises NoRun, Mismatch, PeerUnreachable, PeerFault, TimeoutError."""
    try:
        settings = await links.ask_settings(peer)
    except Refused as refusal:
        raise NoRun(str(refusal)) from None
    if settings.protocol != PROTOCOL:
        theirs = f"speaks protocol {settings.protocol}" if settings.protocol else "is of an older release"
        raise Mismatch(f"it {theirs}, and this daemon speaks protocol {PROTOCOL}; update the older one")
    return settings


def read_run(settings: Settings) -> RunConfig:
    """The run that the settings describe. Raises Mismatch if this release can't use them, or they belie their name."""
    from swarmd.settings import run_from_plain

    try:
        run = run_from_plain(settings.run, "the run's settings")
    except ConfigError as trouble:
        raise Mismatch(f"it gave settings that this version can't use: {trouble}") from None
    if fingerprint(run) != settings.fingerprint:
        raise Mismatch("its settings don't have the fingerprint it claims; one of the two is of another version")
    return run


def check_wanted(run: RunConfig, only: str, ours: RunConfig | None) -> None:
    """Compares a run with the one that is wanted, which may have more steps by now. `only`: its fingerprint, "" for any
    run; `ours`: this daemon founds it unless others work at it. Raises AnotherRun, and Prolonged if it is to be
    prolonged here while others work at it.
    """
    if only in ("", *lineage(run)):
        return
    if ours is not None and lineage(ours)[0] == lineage(run)[0]:
        raise Prolonged(
            f"others still work at run {run.name}, which has {run.steps} steps for them: leave out --steps to join "
            f"them; to go on to {ours.steps} steps, stop them first (`swarmctl drain` on each), and start "
            "them after this."
        )
    raise AnotherRun(f"it is of run {fingerprint(run)} ({run.name}), and this home of run {only}")
