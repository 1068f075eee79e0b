"""For every test of the network: nothing fails unheard."""

from tests.unheard import nothing_fails_unheard, only_what_is_ours

__all__ = ["nothing_fails_unheard", "only_what_is_ours"]
