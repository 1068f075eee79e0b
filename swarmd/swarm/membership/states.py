"""What a peer's state on its card says of what it takes part in."""

ADMITTING = ("waiting", "serving")
"""States in which a peer takes hops."""
AT_WORK = (*ADMITTING, "paused", "draining")
"""States in which a peer has its stage's state and takes part in rounds, and in the end of what it has begun."""
STAYING = (*ADMITTING, "paused")
"""Of these, those of whoever doesn't mean to leave."""
