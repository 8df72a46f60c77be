"""The learning rate over outer steps."""

import math
from collections.abc import Callable
from functools import partial

from lmix.training.config import OptimizerConfig


def learning_rate_schedule(settings: OptimizerConfig, steps: int) -> Callable[[int], float]:
    """The factor of `settings.lr` as a function of the step, counted from 0, for torch's `LambdaLR`.

    After the warm-up these are transformers' schedules. In the warm-up of w steps the factors are 1 / (w + 1) to
    w / (w + 1), where transformers' begin at 0 and would make the first step's rollouts in vain.

    Args:
        steps: of the whole run, where linear and cosine end.
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
