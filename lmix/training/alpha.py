"""Callbacks that change alpha between outer steps, never within one."""

import math
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor

from lmix.functional import accuracy_weighted_alpha, alpha_of_counts, forgetting_and_gain
from lmix.model.mixture import Mixture, check_alpha
from lmix.training.clock import Clock
from lmix.training.grpo import GRPOModule


class AlphaCallback(L.Callback):
    """Base of callbacks that replace `pl_module.mixture` between steps.

    A resumed run continues with the alpha in its checkpoint, unless the settings name a different initial alpha.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Raise ValueError if the module has no alpha that can change."""
        name = type(self).__name__
        if not isinstance(pl_module, GRPOModule) or pl_module.has_teacher:
            kind = type(pl_module).__name__
            raise ValueError(f"{name} changes the alpha of lmix.GRPOModule, but {kind} has no alpha: remove {name}")
        if pl_module.weights is not None:
            raise ValueError(f"{name} changes alpha, but model.weights is given and fixed: remove one of the two")
        if pl_module.objective.needs_reference:
            raise ValueError(f"{name} changes alpha, but objective.beta needs alpha 0: remove one of the two")

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: GRPOModule, checkpoint: dict[str, Any]) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        pl_module.restore_alpha(checkpoint["lmix"])

    def move(self, pl_module: GRPOModule, alpha: float) -> None:
        """Set the alpha of the next step's mixture."""
        pl_module.mixture = pl_module.mixture.with_alpha(alpha)


class ValidatedAlpha(AlphaCallback):
    """Base of rules that decode the validation problems after each outer step and choose the next alpha from them.

    `data.validation_size` sets how many problems there are, and `data.validation_source` where they come from.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and not trainer.datamodule.validation_size:  # pyright: ignore[reportAttributeAccessIssue]
            raise ValueError(
                f"data.validation_size is 0, but {type(self).__name__} needs validation problems: set it, for example "
                "to 100"
            )

    def mixtures(self, mixed: Mixture) -> list[Mixture]:
        """The mixtures that decode the problems, given the step's mixture."""
        raise NotImplementedError

    def decide(self, pl_module: GRPOModule, solved_NM: Tensor) -> dict[str, float]:
        """Return the next alpha as `alpha/next`, and other values to log. Every rank must call it.

        Args:
            solved_NM: bool, `[N, M]`: whether each of the M `mixtures` solved each of this rank's N problems.
        """
        raise NotImplementedError

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: GRPOModule, *_: Any, **__: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        clock = Clock(pl_module.device)
        mixtures = self.mixtures(pl_module.mixture)
        groups = pl_module.answer(pl_module.datamodule.validation_share(), mixtures, samples=len(mixtures))
        pl_module.compute.draw(groups, mixtures)
        solved = [[rollout.solved for rollout in group.rollouts] for group in groups]
        decided = self.decide(pl_module, torch.tensor(solved, dtype=torch.bool).view(-1, len(mixtures)))
        self.move(pl_module, decided["alpha/next"])
        seconds = clock.lap()
        step_seconds = sum(float(trainer.callback_metrics[f"perf/{part}_seconds"]) for part in ("rollout", "update"))
        spent = pl_module.compute.collect(pl_module)
        pl_module.log_dict({**decided, **spent, "perf/alpha_share": seconds / (seconds + step_seconds)})


class AdaptiveAlpha(ValidatedAlpha):
    """Algorithm 2: after each outer step, set alpha by the net gain of mixing on the validation problems (eq. 7-9).

    The policy alone and the mixture at the current alpha decode the problems greedily, in one pass from one prefill.
    `data.validation_size` sets how many there are. The net gain is scaled to 100 problems, so that the paper's offset
    and scale apply to a validation set of any size.

    Args:
        offset: c_o of eq. 9, in problems per 100.
        scale: c_d of eq. 9, in problems per 100.

    Raises:
        ValueError: `scale` is not positive.
    """

    def __init__(self, offset: float = 25.0, scale: float = 35.0) -> None:
        if not scale > 0:
            raise ValueError(f"AdaptiveAlpha.scale must be positive, not {scale}")
        self.offset, self.scale = offset, scale

    def mixtures(self, mixed: Mixture) -> list[Mixture]:
        return [mixed.with_alpha(0.0), mixed]

    def decide(self, pl_module: GRPOModule, solved_NM: Tensor) -> dict[str, float]:
        counts = (*forgetting_and_gain(solved_NM[:, 0], solved_NM[:, 1]), len(solved_NM))
        forgetting, gain, problems = map(int, pl_module.sum_over_ranks(counts))
        update = alpha_of_counts(forgetting, gain, problems, self.offset, self.scale)
        return {
            "alpha/next": update.alpha,
            "alpha/forgetting": float(update.forgetting),
            "alpha/gain": float(update.gain),
            "alpha/net_gain": float(update.net_gain),
        }


class AccuracyWeightedAlpha(ValidatedAlpha):
    """After each outer step, move alpha by the validation accuracy of the policy alone, the mixture at the current
    alpha, and the reference alone. See `lmix.functional.accuracy_weighted_alpha`.

    This variant is in the authors' code and not in the paper. All three decode the problems greedily, in one pass from
    one prefill. `data.validation_size` sets how many problems there are.

    Args:
        temperature: temperature of the softmax over the three accuracies, which lie between 0 and 1.
        rate: fraction of the distance to the target that alpha moves in a step, in (0, 1].
        lowest: smallest alpha.
        highest: largest alpha.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self, temperature: float = 0.25, rate: float = 0.5, lowest: float = 0.05, highest: float = 0.95
    ) -> None:
        self.settings = temperature, rate, lowest, highest
        try:
            accuracy_weighted_alpha((0, 0, 0), 0, 0.5, *self.settings)
        except ValueError as error:
            raise ValueError(f"{type(self).__name__}: {error}") from error

    def mixtures(self, mixed: Mixture) -> list[Mixture]:
        return [mixed.with_alpha(0.0), mixed, mixed.with_alpha(1.0)]

    def decide(self, pl_module: GRPOModule, solved_NM: Tensor) -> dict[str, float]:
        policy, mixed, reference, problems = map(
            int, pl_module.sum_over_ranks([*solved_NM.sum(dim=0).tolist(), len(solved_NM)])
        )
        alpha = pl_module.mixture.alpha
        rates = {"policy": policy, "mixed": mixed, "reference": reference}
        return {
            "alpha/next": accuracy_weighted_alpha((policy, mixed, reference), problems, alpha, *self.settings),
            **{f"alpha/{name}_accuracy": count / max(problems, 1) for name, count in rates.items()},
        }


class AlphaSchedule(AlphaCallback):
    """Alpha as a function of the step only, from `start` in the first step to `end` in the last.

    Args:
        start: alpha of the first step.
        end: alpha of step `trainer.max_steps`.
        shape: shape of the curve between the two.

    Raises:
        ValueError: an alpha is outside [0, 1].
    """

    def __init__(self, start: float = 0.9, end: float = 0.1, shape: Literal["linear", "cosine"] = "linear") -> None:
        self.start, self.end, self.shape = check_alpha(start), check_alpha(end), shape

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and trainer.max_steps < 1:
            raise ValueError("AlphaSchedule ends at trainer.max_steps: set it above 0")

    def at(self, step: int, steps: int) -> float:
        """Alpha of a step, counted from 0, in a run of `steps` steps."""
        done = min(1.0, step / max(1, steps - 1))
        if self.shape == "cosine":
            done = 0.5 * (1.0 - math.cos(math.pi * done))
        return self.start + (self.end - self.start) * done

    def on_fit_start(self, trainer: L.Trainer, pl_module: GRPOModule) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.move(pl_module, self.at(0, trainer.max_steps))  # for the evaluation before the first step

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: GRPOModule, *_: Any, **__: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.move(pl_module, self.at(trainer.global_step, trainer.max_steps))
