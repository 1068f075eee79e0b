"""swarmd trains one large transformer on many weak, scattered, unreliable machines (SWARM parallelism)."""

__version__ = "0.1.0"
