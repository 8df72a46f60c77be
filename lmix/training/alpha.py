"""Callbacks that move alpha between steps, never inside one."""

import math
from typing import Any, Literal

import lightning as L
import torch

from lmix.functional import alpha_of_counts, forgetting_and_gain
from lmix.model.mixture import check_alpha
from lmix.training.clock import Clock
from lmix.training.grpo import GRPOModule


class AlphaCallback(L.Callback):
    """Base of callbacks that put another `pl_module.mixture` in place between steps.

    A resumed run takes up the alpha that it had come to, unless the settings name another initial one.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Raise ValueError where the module has no alpha that could be moved."""
        name = type(self).__name__
        if not isinstance(pl_module, GRPOModule):
            kind = type(pl_module).__name__
            raise ValueError(f"{name} moves the alpha of lmix.GRPOModule; {kind} has none: leave it out")
        if pl_module.weights is not None:
            raise ValueError(f"{name} moves alpha, but model.weights is given and fixed: leave one of the two out")
        if pl_module.objective.needs_reference:
            raise ValueError(f"{name} moves alpha, but objective.beta needs alpha 0: leave one of the two out")

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: GRPOModule, checkpoint: dict[str, Any]) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        pl_module.restore_alpha(checkpoint["lmix"])

    def move(self, pl_module: GRPOModule, alpha: float) -> None:
        """Let the next step's mixture have this alpha."""
        pl_module.mixture = pl_module.mixture.with_alpha(alpha)


class AdaptiveAlpha(AlphaCallback):
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

    def __init__(self, offset: float = 25.0, scale: float = 35.0) -> None:
        if not scale > 0:
            raise ValueError(f"AdaptiveAlpha.scale must be positive, not {scale}")
        self.offset, self.scale = offset, scale

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and not trainer.datamodule.validation_size:  # pyright: ignore[reportAttributeAccessIssue]
            raise ValueError("data.validation_size is 0, but AdaptiveAlpha decides on these problems: set it (100)")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: GRPOModule, *_: Any, **__: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        clock = Clock(pl_module.device)
        mixed = pl_module.mixture
        mixtures = [mixed.with_alpha(0.0), mixed]
        groups = pl_module.answer(pl_module.datamodule.validation_share(), mixtures, samples=2)
        correct_N2 = torch.tensor(
            [[rollout.solved for rollout in group.rollouts] for group in groups],
            dtype=torch.bool,
        ).view(-1, 2)
        counts = (*forgetting_and_gain(correct_N2[:, 0], correct_N2[:, 1]), len(groups))
        forgetting, gain, problems = map(int, pl_module.sum_over_ranks(counts))
        update = alpha_of_counts(forgetting, gain, problems, self.offset, self.scale)
        self.move(pl_module, update.alpha)
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


class AlphaSchedule(AlphaCallback):
    """Alpha as a function of the step alone, from `start` in the first step to `end` in the last.

    Args:
        start: alpha of the first step.
        end: alpha of step `trainer.max_steps`.
        shape: how it goes from one to the other.

    Raises:
        ValueError: an alpha outside [0, 1].
    """

    def __init__(self, start: float = 0.9, end: float = 0.1, shape: Literal["linear", "cosine"] = "linear") -> None:
        self.start, self.end, self.shape = check_alpha(start), check_alpha(end), shape

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and trainer.max_steps < 1:
            raise ValueError("AlphaSchedule ends at trainer.max_steps: set it above 0")

    def at(self, step: int, steps: int) -> float:
        """Alpha of a step, counted from 0, of a run of `steps`."""
        done = min(1.0, step / max(1, steps - 1))
        if self.shape == "cosine":
            done = 0.5 * (1.0 - math.cos(math.pi * done))
        return self.start + (self.end - self.start) * done

    def on_fit_start(self, trainer: L.Trainer, pl_module: GRPOModule) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.move(pl_module, self.at(0, trainer.max_steps))  # for the evaluation before the first step

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: GRPOModule, *_: Any, **__: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.move(pl_module, self.at(trainer.global_step, trainer.max_steps))
