"""GRPO on the mixed policy: Algorithm 1 of Gan & Zhu (arXiv 2605.20555).

Legend: P prompts, G samples of a prompt, B = P * G rollouts, C tokens of the longest completion.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lmix.data.example import Example
from lmix.functional import clipped_surrogate, dead_groups, group_advantages, group_token_weights, k3_kl
from lmix.model.adapters import AdapterConfig
from lmix.model.backbone import BackboneConfig
from lmix.model.mixed_policy import Mixture
from lmix.model.streams import REFERENCE
from lmix.rollout.rollout import Packed, Rollout, length_mask, micro_batches, pack
from lmix.tasks.task import Judgement
from lmix.training.base import AdapterModule
from lmix.training.clock import Clock
from lmix.training.completions import completion_rows
from lmix.training.config import ObjectiveConfig, OptimizerConfig, SamplingConfig


@dataclass
class BeforeUpdate:
    """Log-probabilities before the first inner update, `[b, C]` of each micro-batch; without gradient."""

    log_probs: list[Tensor] = field(default_factory=list)
    """Of the mixed policy: the old ones of eq. 5."""
    reference_log_probs: list[Tensor] = field(default_factory=list)
    """Of the reference, where there is a KL term; it never changes."""
    updates: int = 0
    """Inner updates that have used it."""


class GRPOModule(AdapterModule):
    """Reinforcement learning of the policy adapter inside the mixture with a frozen reference.

    Args:
        backbone: the model that both streams share.
        adapters: where the policy starts, and what the reference is.
        alpha: weight of the reference, in [0, 1]: 0 is the policy alone (GRPO), 1 the reference alone.
        mixture: average logits (eq. 1) or probabilities (section 5).
        weights: of the policy, the reference and each of adapters.experts, in place of alpha: an ensemble. Logits take
            any numbers, probabilities those that sum to 1.
        sampling: how rollouts are drawn.
        objective: how a step's rollouts become a gradient.
        optimizer: how the gradient becomes a step.

    Raises:
        ValueError: alpha outside [0, 1], or weights that do not fit the adapters.
    """

    def __init__(
        self,
        backbone: BackboneConfig = BackboneConfig(),
        adapters: AdapterConfig = AdapterConfig(),
        alpha: float = 0.5,
        mixture: Mixture = "logits",
        weights: list[float] | None = None,
        sampling: SamplingConfig = SamplingConfig(),
        objective: ObjectiveConfig = ObjectiveConfig(),
        optimizer: OptimizerConfig = OptimizerConfig(),
    ) -> None:
        super().__init__(backbone, adapters, alpha, mixture, sampling, optimizer, weights)
        self.objective = objective

    def training_step(self, batch: list[Example], batch_idx: int) -> None:
        """One outer step of Algorithm 1."""
        clock = Clock(self.device)
        rollouts_B = self.sample(batch)
        rollout_seconds = clock.lap()

        judgements_B = self.judge(rollouts_B, batch)
        self.rows = completion_rows(rollouts_B, judgements_B, batch, self.draw())
        for attempt in range(self.sampling.resample_dead):
            rollout_seconds += self.replace_dead(batch, rollouts_B, judgements_B, attempt)

        rewards_PG = self.rewards(judgements_B)
        advantages_PG = self.advantages(rewards_PG)
        weights_B = self.token_weights(rollouts_B)
        clock.lap()

        before = BeforeUpdate()
        rate = self.learning_rate()
        for inner in range(self.objective.inner_updates):
            stats = self.accumulate_gradient(rollouts_B, advantages_PG.flatten(), weights_B, before)
            stats["grad_norm"] = self.optimizer_step(last=inner == self.objective.inner_updates - 1)
        update_seconds = clock.lap()

        stats["lr"] = rate
        self.log_step(rollouts_B, rewards_PG, stats, rollout_seconds, update_seconds)

    def replace_dead(
        self, batch: list[Example], rollouts_B: list[Rollout], judgements_B: list[Judgement], attempt: int
    ) -> float:
        """Put other training prompts with new rollouts in the place of dead groups, in place (DAPO's dynamic sampling).

        Which prompts is a function of (seed, step, attempt), so nothing of it needs to be saved. Where no prompt is
        left, dead groups stay. What is thrown away stays among the step's rows, which rates are taken from.

        Returns:
            Seconds of sampling.
        """
        rewards_PG = self.rewards(judgements_B)
        dead = dead_groups(rewards_PG).nonzero().flatten().tolist()
        if not dead:
            return 0.0
        spare = self.trainer.datamodule.spare_examples(  # pyright: ignore[reportAttributeAccessIssue]
            len(dead), self.global_step, attempt, {row.problem_id for row in self.rows}
        )
        clock = Clock(self.device)
        fresh = self.sample(spare)
        seconds = clock.lap()
        judged = self.judge(fresh, spare)
        self.rows += completion_rows(fresh, judged, spare, self.draw())
        samples = self.sampling.samples_per_prompt
        for place, prompt in enumerate(dead[: len(spare)]):
            old, new = (slice(p * samples, (p + 1) * samples) for p in (prompt, place))
            batch[prompt] = spare[place]
            rollouts_B[old] = [replace(r, prompt=prompt) for r in fresh[new]]
            judgements_B[old] = judged[new]
        return seconds

    def accumulate_gradient(
        self, rollouts_B: Sequence[Rollout], advantages_B: Tensor, weights_B: Tensor, before: BeforeUpdate
    ) -> dict[str, float]:
        """Add the gradient of eq. 6 over all rollouts, a micro-batch at a time.

        Rollouts of dead groups have advantage zero. Without a KL term their gradient is zero: they get no pass, but the
        mean counts them.

        Args:
            weights_B: see `token_weights`.
            before: filled by the first inner update, used by all.

        Returns:
            Of this rank: the loss, the number of tokens that got a pass, and over these the number of clipped ones, the
            sum of the KL and of the distance of the sampler's log-probability from this one.
        """
        objective = self.objective
        live = [i for i in range(len(rollouts_B)) if advantages_B[i] != 0 or objective.beta]
        tokens = sum(len(rollouts_B[i].completion_ids) for i in live)
        sums = {"tokens": float(tokens), "loss": 0.0, "clipped": 0.0, "kl": 0.0, "gap": 0.0}
        passes, share = micro_batches(
            [rollouts_B[i] for i in live], objective.micro_batch_tokens, self.policy.shares_prefixes
        )
        idle = self.idle_passes(len(passes))
        for number, part in enumerate(passes):
            rows = [live[i] for i in part]
            packed = pack([rollouts_B[i] for i in rows], self.device, share)
            log_probs_bC = packed.unflatten(self.score(packed))
            if number == len(before.log_probs):
                before.log_probs.append(log_probs_bC.detach())  # so with one inner update the ratio is exactly 1
            old_bC = before.log_probs[number]
            advantages_b = advantages_B[rows].to(self.device)
            terms_bC, clipped_bC = self.surrogate(log_probs_bC, old_bC, advantages_b, packed.mask)
            if objective.beta:
                if number == len(before.reference_log_probs):
                    before.reference_log_probs.append(packed.unflatten(self.reference_log_probs(packed)))
                kl_bC = k3_kl(log_probs_bC, before.reference_log_probs[number])
                terms_bC = terms_bC - objective.beta * kl_bC
                sums["kl"] += float(kl_bC.detach().sum())
            losses_b = -(terms_bC * weights_B[rows].to(self.device)[:, None]).sum(dim=1)
            self.backward_and_check(losses_b, [rollouts_B[i] for i in rows])
            sampled = torch.cat([rollouts_B[i].log_probs for i in rows]).to(self.device)
            sums["loss"] += float(losses_b.detach().sum())
            sums["clipped"] += float(clipped_bC.sum())
            sums["gap"] += float((old_bC[packed.mask] - sampled).abs().sum())
        for _ in range(idle):
            self.idle_pass(with_reference=bool(objective.beta) and before.updates == 0)
        before.updates += 1
        return sums

    def idle_pass(self, with_reference: bool) -> None:
        """The passes of one micro-batch without its gradient, for ranks that have more of them."""
        packed = pack([self.idle_rollout()], self.device)
        loss = 0.0 * self.score(packed).sum()
        if with_reference:
            self.reference_log_probs(packed)
        if loss.requires_grad:
            self.backward_here(loss)

    def advantages(self, rewards_PG: Tensor) -> Tensor:
        """What each completion is worth beside the others of its group (eq. 4), `[P, G]`; where it is 0 there is no
        pass."""
        return group_advantages(rewards_PG, scale_by_std=self.objective.scale_by_std)

    def surrogate(
        self, log_probs_bC: Tensor, old_bC: Tensor, advantages_b: Tensor, mask_bC: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What is maximised, a token at a time (eq. 5), and which tokens are clipped; both `[b, C]`."""
        terms_bC, clipped_bC, _ = clipped_surrogate(log_probs_bC, old_bC, advantages_b, mask_bC, self.objective.clip)
        return terms_bC, clipped_bC

    def token_weights(self, rollouts_B: Sequence[Rollout]) -> Tensor:
        """What each token of a rollout weighs in the loss over all ranks, `[B]`.

        Eq. 6: one over the tokens of its group, and over the groups. DAPO: one over all tokens.
        """
        tokens_B = torch.tensor([len(r.completion_ids) for r in rollouts_B], dtype=torch.long)
        groups = len(rollouts_B) // self.sampling.samples_per_prompt
        all_groups, all_tokens = self.sum_over_ranks([groups, int(tokens_B.sum())])
        if self.objective.normaliser == "batch" or not groups:
            return torch.full((len(rollouts_B),), 1.0 / max(all_tokens, 1.0))
        weights_B = group_token_weights(length_mask(rollouts_B), torch.tensor([r.prompt for r in rollouts_B]))
        return weights_B * (groups / all_groups)

    def rewards(self, judgements_B: Sequence[Judgement]) -> Tensor:
        """Rewards by group, `[P, G]`."""
        return torch.tensor([j.reward for j in judgements_B]).reshape(-1, self.sampling.samples_per_prompt)

    @torch.no_grad()
    def reference_log_probs(self, packed: Packed) -> Tensor:
        """Log-probability of each completion token under the reference alone, `[N]`."""
        return self.policy.stream_log_probs(self.hidden(packed, REFERENCE), packed.targets, REFERENCE)

    def log_step(
        self,
        rollouts_B: Sequence[Rollout],
        rewards_PG: Tensor,
        stats: dict[str, float],
        rollout_seconds: float,
        update_seconds: float,
    ) -> None:
        """Log a step's figures: rates over all completions that were drawn, the rest over those of the update."""
        rows, drawn, tokens = self.rows, len(self.rows), sum(row.tokens for row in self.rows)
        update_tokens, scored = sum(len(r.completion_ids) for r in rollouts_B), stats["tokens"]
        self.log_over_ranks(
            means={
                "train/reward": (sum(row.reward for row in rows), drawn),
                "train/solve_rate": (sum(row.answer_correct for row in rows), drawn),
                "train/format_rate": (sum(row.format_correct for row in rows), drawn),
                # an unbiased estimate of the mixed policy's entropy a token: the mean of -log p of what it drew
                "train/entropy": (-sum(float(r.log_probs.sum()) for r in rollouts_B), update_tokens),
                "train/completion_length": (tokens, drawn),
                "train/dead_groups": (int(dead_groups(rewards_PG).sum()), len(rewards_PG)),
                "train/clip_fraction": (stats["clipped"], scored),
                "train/kl": (stats["kl"], scored),
                "train/sampler_logprob_gap": (stats["gap"], scored),
                "perf/rollout_seconds": (rollout_seconds, 1),
                "perf/update_seconds": (update_seconds, 1),
            },
            sums={
                "train/loss": stats["loss"],
                "train/replaced_groups": (drawn - len(rollouts_B)) // self.sampling.samples_per_prompt,
                "train/verifier_failures": self.task.failures,
                "perf/rollout_tokens_per_second": tokens / rollout_seconds,
                "perf/train_tokens_per_second": update_tokens / update_seconds,
            },
            same={
                "step": self.global_step,  # the x axis
                "alpha": self.policy.alpha,
                "train/grad_norm": stats["grad_norm"],
                "train/lr": stats["lr"],
            },
        )
