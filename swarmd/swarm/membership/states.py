"""The states on a peer's card, by what a peer in them takes part in."""

ADMITTING = ("waiting", "serving")
"""States in which a peer takes hops."""
AT_WORK = (*ADMITTING, "paused", "draining")
"""States in which a peer has its stage's state and takes part in rounds, and in the end of what it has begun."""
PRESENT = (*AT_WORK, "finished")
"""States in which a peer is there with its stage's state, be it to take part or to give it."""
STAYING = (*ADMITTING, "paused")
"""States of a working peer that doesn't mean to leave."""
