"""Tokens per second of a 2-stage swarm over plain PyTorch, beside the pipelines that others offer."""
