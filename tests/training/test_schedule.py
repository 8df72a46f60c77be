"""The learning rate over steps."""

import pytest
import torch
from transformers import get_scheduler

from lmix.training.config import OptimizerConfig
from lmix.training.schedule import learning_rate_schedule


def factors(schedule, warmup, steps):
    factor = learning_rate_schedule(OptimizerConfig(schedule=schedule, warmup_steps=warmup), steps)
    return [factor(step) for step in range(steps)]


@pytest.mark.parametrize("schedule", ["constant_with_warmup", "linear", "cosine"])
def test_no_step_of_the_warm_up_has_rate_0(schedule):
    assert factors(schedule, 1, 4)[:2] == [1 / 2, 1.0]
    assert factors(schedule, 3, 8)[:4] == [1 / 4, 2 / 4, 3 / 4, 1.0]
    assert factors(schedule, 0, 4)[0] == 1.0
    assert min(factors(schedule, 10, 10)) == 1 / 11  # a run that ends in its warm-up


@pytest.mark.parametrize("schedule", ["constant", "constant_with_warmup", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 1, 5])
def test_after_the_warm_up_the_factors_are_transformers(schedule, warmup):
    if schedule == "constant" and warmup:
        pytest.skip("constant has no warm-up")
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    theirs = get_scheduler(schedule, optimizer, warmup, 12).lr_lambdas[0]  # pyright: ignore[reportAttributeAccessIssue]
    assert factors(schedule, warmup, 12)[warmup:] == [theirs(step) for step in range(warmup, 12)]


def test_a_warm_up_that_the_schedule_would_ignore_is_refused():
    with pytest.raises(ValueError, match=r"^optimizer.warmup_steps is 3, but .* has no warm-up: set constant_"):
        OptimizerConfig(schedule="constant", warmup_steps=3)


def test_the_default_rate_is_lora_s():
    assert OptimizerConfig().lr == 1e-4
