"""Supervised fine-tuning on demonstrations, which produces the reference adapter for reinforcement learning."""

from typing import Literal

import torch

from lmix.model.adapters import AdapterConfig
from lmix.model.backbone import BackboneConfig
from lmix.rollout.packing import pack, token_budget_batches
from lmix.rollout.samplers import SamplerChoice
from lmix.rollout.types import Prompt
from lmix.training.clock import Clock
from lmix.training.config import OptimizerConfig, SamplingConfig
from lmix.training.demonstrations import demonstration, limit_demonstrations
from lmix.training.module import AdapterModule
from lmix.training.scoring import idle_rollout, score


class SFTModule(AdapterModule):
    """Maximum likelihood training on demonstrations in the task's template; the loss covers the completion tokens only.

    The trained adapter is `policy`. Use the peft folder beside a checkpoint as `adapters.reference` of a later run.
    Each step uses `data.prompts_per_step` demonstrations.

    Args:
        backbone: the model to adapt.
        adapters: the adapter's rank and target layers, and its starting point.
        micro_batch_tokens: padded tokens of one forward and backward pass. It affects memory and speed only.
        sampling: how held-out completions are sampled; only `max_new_tokens` and `slots` are used.
        optimizer: learning rate and schedule.
        loss: token_mean: the mean over the step's tokens. sequence_sum: the sum over each demonstration's tokens, then
            the mean over demonstrations, so that the weight of a token does not depend on the lengths of the others (as
            in the authors' code). Its gradient is larger than that of token_mean by about the mean length.
        sampler: the sampler for held-out completions; null is lmix's own engine.

    Raises:
        ValueError: `adapters.reference` is given, or a demonstration is longer than the backbone's context and
            `data.long_prompts` is `error`.
    """

    def __init__(
        self,
        backbone: BackboneConfig = BackboneConfig(),
        adapters: AdapterConfig = AdapterConfig(),
        micro_batch_tokens: int = 8192,
        sampling: SamplingConfig = SamplingConfig(),
        optimizer: OptimizerConfig = OptimizerConfig(lr=1e-4, warmup_steps=10, schedule="cosine"),
        loss: Literal["token_mean", "sequence_sum"] = "token_mean",
        sampler: SamplerChoice | None = None,
    ) -> None:
        super().__init__(backbone, adapters, 0.0, "logits", sampling, optimizer, sampler=sampler)
        if adapters.reference is not None:
            raise ValueError(
                f"adapters.reference must be null for SFT, not {adapters.reference!r}: there is no mixture"
            )
        self.micro_batch_tokens, self.loss = micro_batch_tokens, loss

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            limit_demonstrations(self.datamodule, self.model_path, self.tokenizer)

    def training_step(self, batch: list[Prompt], batch_idx: int) -> None:
        """One step on the negative log-likelihood of the batch's completion tokens, averaged as set by `loss`."""
        clock = Clock(self.device)
        self.groups = []  # training samples nothing
        demonstrations = [demonstration(prompt, self.task, self.tokenizer) for prompt in batch]
        tokens = sum(len(d.completion_ids) for d in demonstrations)
        all_tokens, all_demonstrations = self.sum_over_ranks([tokens, len(batch)])
        count = all_tokens if self.loss == "token_mean" else all_demonstrations
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        passes = token_budget_batches([len(d) for d in demonstrations], self.micro_batch_tokens)
        idle = self.idle_passes(len(passes))
        self.expect_passes(len(passes))
        for rows in passes:
            packed = pack([demonstrations[i] for i in rows], self.device)
            losses = -packed.unflatten(score(self.policy, self.mixture, packed)).sum(dim=1) / count
            self.backward_and_note(losses, [demonstrations[i] for i in rows])
            total += losses.detach().sum()
        for _ in range(idle):
            packed = pack([idle_rollout(self.policy, self.mixture, keep_frozen=False)], self.device)
            self.backward_here(0.0 * score(self.policy, self.mixture, packed).sum())
        self.name_nonfinite()
        self.compute.train(demonstrations, False, self.policy.update_passes)
        norm = self.step_optimizer()
        seconds = clock.lap()
        self.log_over_ranks(
            means={
                "train/completion_length": (tokens, len(batch)),
                "perf/update_seconds": (seconds, 1),
            },
            sums={"train/loss": float(total), "perf/train_tokens_per_second": tokens / seconds},
            # the step is the x axis
            same={"step": self.global_step, "train/grad_norm": norm, **self.compute.collect(self)},
        )
