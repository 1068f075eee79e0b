"""Contexts with only those parts that a test needs."""

from types import SimpleNamespace
from typing import Any, cast

from swarmd.swarm.history.handouts import Handouts
from swarmd.swarm.history.peer_context import PeerContext
from swarmd.swarm.hops.stage_context import StageContext


def peer_context(**parts: Any) -> PeerContext:
    """A peer's context that has these parts; all others are None, but for `handouts`, which are empty."""
    every: dict[str, Any] = dict.fromkeys(("run", "limits", "links", "membership", "history", "tasks", "rng", "own"))
    every["handouts"] = Handouts()
    assert parts.keys() <= every.keys(), "a context has such a part"
    return cast("PeerContext", SimpleNamespace(**{**every, **parts}))


STAGE_PARTS = ("stage", "compute", "scope", "tasks", "sums", "hops")


def stage_context(**parts: Any) -> StageContext:
    """A stage's context that has these parts, of its own or of the peer's; all others are None."""
    own = {name: parts.pop(name, None) for name in STAGE_PARTS}
    context = SimpleNamespace(peer=peer_context(**parts), **own)
    context.is_tail = context.peer.run is not None and own["stage"] == context.peer.run.model.stages - 1
    return cast("StageContext", context)
