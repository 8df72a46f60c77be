"""Callbacks that move alpha between steps, never inside one."""

import math
from typing import Any, Literal

import lightning as L
import torch

from lmix.functional import alpha_of_counts, forgetting_and_gain
from lmix.model.mixed_policy import check_alpha
from lmix.rollout.engine import Draw
from lmix.training.clock import Clock
from lmix.training.grpo import GRPOModule


def check_moves(callback: L.Callback, module: L.LightningModule) -> None:
    """Raise ValueError where a module has no alpha that a callback could move."""
    name = type(callback).__name__
    if not isinstance(module, GRPOModule):
        raise ValueError(f"{name} moves the alpha of lmix.GRPOModule; {type(module).__name__} has none: leave it out")
    if module.weights is not None:
        raise ValueError(f"{name} moves alpha, but model.weights is given and fixed: leave one of the two out")


class AdaptiveAlpha(L.Callback):
    """Algorithm 2: after each outer step, alpha follows what mixing wins on the validation problems (eq. 7-9).

    The policy alone and the mixture at the current alpha decode the problems greedily, in one pass from one prefill.
    `data.validation_size` says how many there are. The net gain is taken per 100 problems, so that the paper's offset
    and scale hold for any number of them.

    Args:
        offset: c_o of eq. 9, in problems of 100.
        scale: c_d of eq. 9, in problems of 100.

    Raises:
        ValueError: `scale` is not positive.
    """

    moves_alpha = True

    def __init__(self, offset: float = 25.0, scale: float = 35.0) -> None:
        if not scale > 0:
            raise ValueError(f"AdaptiveAlpha.scale must be positive, not {scale}")
        self.offset, self.scale = offset, scale

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        check_moves(self, pl_module)
        if stage == "fit" and not trainer.datamodule.validation_size:  # pyright: ignore[reportAttributeAccessIssue]
            raise ValueError("data.validation_size is 0, but AdaptiveAlpha decides on these problems: set it (100)")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: GRPOModule, *_: Any, **__: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        clock = Clock(pl_module.device)
        examples = trainer.datamodule.validation_share()  # pyright: ignore[reportAttributeAccessIssue]
        rollouts = pl_module.engine.generate(
            [example.prompt_ids for example in examples],
            pl_module.sampling.max_new_tokens,
            Draw(greedy=True),
            samples=2,
            alphas=[0.0, pl_module.policy.alpha],
        )
        pl_module.must_be_finite(rollouts)
        judged = pl_module.judge(rollouts, examples)
        correct = torch.tensor([j.answer_correct for j in judged], dtype=torch.bool).view(-1, 2)
        counts = (*forgetting_and_gain(correct[:, 0], correct[:, 1]), len(examples))
        forgetting, gain, problems = map(int, pl_module.sum_over_ranks(counts))
        update = alpha_of_counts(forgetting, gain, problems, self.offset, self.scale)
        pl_module.policy.alpha = update.alpha
        seconds = clock.lap()
        step_seconds = sum(float(trainer.callback_metrics[f"perf/{part}_seconds"]) for part in ("rollout", "update"))
        pl_module.log_dict(
            {
                "alpha/next": update.alpha,
                "alpha/forgetting": float(update.forgetting),
                "alpha/gain": float(update.gain),
                "alpha/net_gain": float(update.net_gain),
                "perf/alpha_share": seconds / (seconds + step_seconds),
            }
        )


class AlphaSchedule(L.Callback):
    """Alpha as a function of the step alone, from `start` in the first step to `end` in the last.

    Args:
        start: alpha of the first step.
        end: alpha of step `trainer.max_steps`.
        shape: how it goes from one to the other.

    Raises:
        ValueError: an alpha outside [0, 1].
    """

    moves_alpha = True

    def __init__(self, start: float = 0.9, end: float = 0.1, shape: Literal["linear", "cosine"] = "linear") -> None:
        self.start, self.end, self.shape = check_alpha(start), check_alpha(end), shape

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        check_moves(self, pl_module)
        if stage == "fit" and trainer.max_steps < 1:
            raise ValueError("AlphaSchedule ends at trainer.max_steps: set it above 0")

    def at(self, step: int, steps: int) -> float:
        """Alpha of a step, counted from 0, of a run of `steps`."""
        done = min(1.0, step / max(1, steps - 1))
        if self.shape == "cosine":
            done = 0.5 * (1.0 - math.cos(math.pi * done))
        return self.start + (self.end - self.start) * done

    def on_fit_start(self, trainer: L.Trainer, pl_module: GRPOModule) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        pl_module.policy.alpha = self.at(0, trainer.max_steps)  # for the evaluation before the first step

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: GRPOModule, *_: Any, **__: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        pl_module.policy.alpha = self.at(trainer.global_step, trainer.max_steps)
