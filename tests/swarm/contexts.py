"""Contexts with only those parts that a test needs."""

from types import SimpleNamespace
from typing import Any, cast

from swarmd.swarm.history.peer_context import PeerContext


def peer_context(**parts: Any) -> PeerContext:
    """A peer's context that has these parts; all others are None."""
    every = dict.fromkeys(("run", "limits", "links", "membership", "history", "tasks", "rng", "own"))
    assert parts.keys() <= every.keys(), "a context has such a part"
    return cast("PeerContext", SimpleNamespace(**{**every, **parts}))
