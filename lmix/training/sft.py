"""Supervised fine-tuning on demonstrations: it writes the adapter that reinforcement learning anchors to."""

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
    """Maximum likelihood of demonstrations in the task's template, the completion's tokens only.

    The trained adapter is `policy`; the peft folder beside a checkpoint is what `adapters.reference` of a later run
    takes. `data.prompts_per_step` demonstrations make a step.

    Args:
        backbone: the model to adapt.
        adapters: the adapter's rank and layers, and what it starts from.
        micro_batch_tokens: padded tokens of one forward and backward pass; changes memory and speed only.
        sampling: of the held-out completions; only `max_new_tokens` and `slots` count.
        optimizer: learning rate and its schedule.
        loss: token_mean: the mean over the step's tokens. sequence_sum: each demonstration's sum over its tokens, then
            the mean over demonstrations, so that a token weighs the same however long the others are (the paper's
            authors); its gradient is about as many times larger as a demonstration has tokens.
        sampler: what draws the held-out completions; null is lmix's engine.

    Raises:
        ValueError: `adapters.reference` is given (SFT has none), or a demonstration is longer than the backbone's
            context and `data.long_prompts` is `error`.
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
        """One step: the negative log-likelihood of the batch's completion tokens, averaged as `loss` says."""
        clock = Clock(self.device)
        self.groups = []  # nothing is drawn in training
        demonstrations = [demonstration(prompt, self.task, self.tokenizer) for prompt in batch]
        tokens = sum(len(d.completion_ids) for d in demonstrations)
        all_tokens, all_demonstrations = self.sum_over_ranks([tokens, len(batch)])
        count = all_tokens if self.loss == "token_mean" else all_demonstrations
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        passes = token_budget_batches([len(d) for d in demonstrations], self.micro_batch_tokens)
        idle = self.idle_passes(len(passes))
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
