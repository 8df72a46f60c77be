"""Optimisation of the policy adapter: inner updates, several ranks, and non-finite gradients."""

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedTokenizerBase

from lmix.model.frozen import give_back_memory
from lmix.model.mixed_policy import MixedPolicy
from lmix.rollout.types import Rollout
from lmix.training.compute import Compute
from lmix.training.config import OptimizerConfig
from lmix.training.guards import NonFinite, write_report
from lmix.training.ranks import RankedModule
from lmix.training.run_folder import run_folder
from lmix.training.schedule import learning_rate_schedule

log = logging.getLogger(__name__)


class OptimisedModule(RankedModule):
    """A module with manual optimisation.

    Call `backward_and_note` for each micro-batch, then `name_nonfinite` and `step_optimizer`.
    """

    policy: MixedPolicy
    optimizer: OptimizerConfig
    tokenizer: PreTrainedTokenizerBase

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.compute = Compute()
        self.nonfinite: list[NonFinite] = []
        """Rollouts of the current step that produced NaN or Inf, on this rank."""
        self._noted: list[tuple[Tensor, Sequence[Rollout]]] = []
        """For each micro-batch since `name_nonfinite`: whether each loss and the gradient are finite, on the device."""
        self._refused_step = 0
        self.update_progress: Callable[[int, int], None] | None = None
        """Called after each micro-batch with (micro-batches so far, those of the whole step); set by a callback."""
        self._passes = self._passes_done = 0

    def configure_optimizers(self) -> Any:
        settings = self.optimizer
        optimizer = torch.optim.AdamW(
            self.policy.policy_parameters(), settings.lr, settings.betas, weight_decay=settings.weight_decay
        )
        return [optimizer], [LambdaLR(optimizer, learning_rate_schedule(settings, self.trainer.max_steps))]

    def on_train_start(self) -> None:
        """Re-apply the configured lr, betas and weight decay after loading a checkpoint."""
        settings = self.optimizer
        optimizer: Any = self.optimizers()
        scheduler: Any = self.lr_schedulers()
        rate = settings.lr * scheduler.lr_lambdas[0](scheduler.last_epoch)
        for group in optimizer.param_groups:
            group.update(lr=rate, initial_lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay)
        scheduler.base_lrs, scheduler._last_lr = [settings.lr], [rate]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.nonfinite = []

    def learning_rate(self) -> float:
        """The learning rate of the next optimiser step."""
        scheduler: Any = self.lr_schedulers()
        return scheduler.get_last_lr()[0]

    def expect_passes(self, passes: int) -> None:
        """Say how many micro-batches the step's updates have on this rank, for `update_progress`."""
        self._passes, self._passes_done = passes, 0

    def backward_and_note(self, losses_b: Tensor, rollouts_b: Sequence[Rollout]) -> None:
        """Add the gradient of a micro-batch's losses, `[b]`, and record on the device whether all is finite.

        `name_nonfinite` reads the record once for all micro-batches of a step, so that a GPU is synchronised once.
        """
        if not losses_b.requires_grad:  # at alpha 1 the policy has no part in the mixture
            return
        self.backward_here(losses_b.sum())
        gradients = [p.grad for p in self.policy.policy_parameters() if p.grad is not None]
        finite = torch.cat([losses_b.detach(), torch.nn.utils.get_total_norm(gradients).to(losses_b)[None]]).isfinite()
        self._noted.append((finite, rollouts_b))
        self._passes_done += 1
        if self.update_progress is not None:
            self.update_progress(self._passes_done, self._passes)

    def name_nonfinite(self) -> None:
        """Add the rollouts that made a loss or the gradient NaN or Inf to `nonfinite`.

        These are the rows whose loss is not finite. If only the gradient is not finite, all rows of the first such
        micro-batch are added, since the gradient is their sum.
        """
        noted, self._noted = self._noted, []
        if not noted:
            return
        finite = iter(torch.cat([each for each, _ in noted]).tolist())
        for _, rollouts_b in noted:
            bad = [rollout for rollout in rollouts_b if not next(finite)]
            gradient_is_finite = next(finite)
            if bad:
                self.nonfinite += [NonFinite(rollout, "loss") for rollout in bad]
            elif not self.nonfinite and not gradient_is_finite:
                cause = "gradient" if len(rollouts_b) == 1 else f"gradient of one of {len(rollouts_b)} rollouts"
                self.nonfinite += [NonFinite(rollout, cause) for rollout in rollouts_b]

    def step_optimizer(self, last: bool = True) -> float:
        """Sum the gradients over ranks, clip, step, and clear. Returns the gradient norm before clipping.

        Only the last inner update goes through Lightning's wrapper, which increments `global_step`, because
        `global_step` counts outer steps as the paper does.

        Raises:
            ValueError: the gradient or the logits of a rollout are not finite. The adapter is left as it was before the
                update. With `optimizer.nonfinite: skip` the update is skipped instead.
        """
        optimizer: Any = self.optimizers()
        scheduler: Any = self.lr_schedulers()
        parameters = self.policy.policy_parameters()
        for parameter in parameters:
            if parameter.grad is None:  # all groups dead: step with a zero gradient, so that momentum decays as usual
                parameter.grad = torch.zeros_like(parameter)
        if self.ranks > 1:
            gradient = torch.cat([parameter.grad.flatten() for parameter in parameters])  # pyright: ignore
            gradient = self.trainer.strategy.reduce(gradient, reduce_op="sum")
            torch.nn.utils.vector_to_parameters(gradient, [p.grad for p in parameters])  # pyright: ignore
        limit = self.optimizer.max_grad_norm
        norm = torch.nn.utils.clip_grad_norm_(parameters, math.inf if limit is None else limit)
        (bad,) = self.sum_over_ranks([len(self.nonfinite)])
        if bad or not torch.isfinite(norm):
            self._refuse_update()
            optimizer.zero_grad()  # without gradients, step() changes neither parameters nor optimiser state
        (optimizer if last else optimizer.optimizer).step()
        optimizer.zero_grad()
        if last:
            scheduler.step()
            give_back_memory(self.root_device)
        return float(norm)

    def _refuse_update(self) -> None:
        """Report the rollouts that are not finite; raise ValueError, or warn if configured. Every rank must call it."""
        step = self.global_step + 1
        if self._refused_step == step:
            return  # all inner updates of the step are skipped, and one report is enough
        self._refused_step = step
        folder = run_folder(self.trainer)
        what = f"logits or gradient of step {step} are not finite"
        if self.nonfinite:
            path = folder / f"nonfinite-step={step:04d}-rank{self.trainer.global_rank}.jsonl"
            write_report(path, step, self.nonfinite, self.tokenizer.decode)  # pyright: ignore[reportArgumentType]
            what += f" (the {self.nonfinite[0].cause}; {path} has the rollouts)"
        if self.optimizer.nonfinite == "stop":
            raise ValueError(
                f"{what}: lower optimizer.lr ({self.optimizer.lr}) or set optimizer.nonfinite to skip, and resume from "
                "the newest checkpoint with --ckpt_path"
            )
        log.warning("%s; skipping the update", what)
