"""The learning rate of a step: a pure function of the optimizer's settings, so that every peer computes the same one.

Relies on nothing but the settings; knows no optimizer and no clock.
"""

import math

from swarmd.config import OptimizerConfig


def learning_rate_at(optimizer: OptimizerConfig, step: int, steps: int) -> float:
    """Learning rate of optimizer step `step` (1 .. steps): a straight warm-up, then a decay that ends at the last step.

    A run that is continued past `steps` keeps the last step's rate.
    """
    assert step >= 1, f"steps count from 1, not {step}"
    peak = optimizer.learning_rate
    if step <= optimizer.warmup_steps:
        return peak * step / optimizer.warmup_steps
    decay_steps = max(steps - optimizer.warmup_steps, 1)
    done = min((step - optimizer.warmup_steps) / decay_steps, 1.0)
    return peak * (optimizer.final_fraction + (1.0 - optimizer.final_fraction) * _remaining(optimizer.decay, done))


def _remaining(decay: str, done: float) -> float:
    """The share of the rate that is left, 1 .. 0, when the fraction `done` of the decay has passed."""
    match decay:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 - done
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * done))
    raise AssertionError(f"unknown decay {decay}")
