"""For every property test: the same examples each time, and no deadline on a machine that others use, too."""

from hypothesis import settings

settings.register_profile("house", deadline=None, derandomize=True, database=None)
settings.load_profile("house")
