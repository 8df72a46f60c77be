"""The learning rate over outer steps."""

import math
from collections.abc import Callable
from functools import partial

from lmix.training.config import OptimizerConfig


def learning_rate_schedule(settings: OptimizerConfig, steps: int) -> Callable[[int], float]:
    """Return a function from the step, counted from 0, to the factor of `settings.lr`, for torch's `LambdaLR`.

    After the warm-up these are transformers' schedules. In a warm-up of w steps the factors are 1 / (w + 1) to
    w / (w + 1). Those of transformers start at 0, which would waste the first step's rollouts.

    Args:
        settings: learning rate, schedule and warm-up.
        steps: outer steps of the whole run, at whose end linear and cosine reach 0.
    """
    return partial(_factor, settings.schedule, settings.warmup_steps, steps)


def _factor(schedule: str, warmup: int, steps: int, step: int) -> float:
    if step < warmup:
        return (step + 1) / (warmup + 1)
    decaying = max(1, steps - warmup)
    if schedule == "linear":
        return max(0.0, (steps - step) / decaying)
    if schedule == "cosine":
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * ((step - warmup) / decaying))))
    return 1.0
