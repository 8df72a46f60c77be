"""GRPO on the mixed policy: Algorithm 1 of Gan & Zhu (arXiv 2605.20555).

Legend: P prompts, G samples of a prompt.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jsonargparse.typing import lazy_instance

from lmix.functional import dead_groups
from lmix.model.adapters import AdapterConfig
from lmix.model.backbone import BackboneConfig
from lmix.model.mixture import MixtureKind
from lmix.rewards import RewardSum
from lmix.rollout.packing import mini_batch_places
from lmix.rollout.samplers import SamplerChoice
from lmix.rollout.types import Group, Prompt, flatten, release_hidden
from lmix.training.checkpoints import naming_last_checkpoint
from lmix.training.clock import Clock
from lmix.training.config import OptimizerConfig, SamplingConfig
from lmix.training.demonstrations import demonstration, limit_demonstrations
from lmix.training.guards import warn_of_gap
from lmix.training.module import AdapterModule
from lmix.training.objectives import GRPO, Objective
from lmix.training.update import Update
from lmix.training.update_stats import UpdateStats


class GRPOModule(AdapterModule):
    """Reinforcement learning of the policy adapter inside the mixture with a frozen reference.

    Args:
        backbone: the model that both streams share.
        adapters: the policy's starting point, and the reference.
        alpha: weight of the reference, in [0, 1]: 0 is the policy alone (GRPO), 1 the reference alone.
        mixture: average logits (eq. 1) or probabilities (section 5).
        weights: weights of the policy, the reference and each of adapters.experts, instead of alpha, for an ensemble.
            For logits they can be any numbers; for probabilities they must sum to 1.
        sampling: how rollouts are sampled.
        rewards: reward functions and their weights: `verifier` (1 if the completion ended and its answer is correct),
            `overlong` (DAPO's soft penalty near the length limit), the controls `format` and `random` (which ignore the
            answer), or the import path of your own function (docs/extending.md). If there are several, each is also
            logged unweighted.
        objective: the loss, such as GRPO or DAPO, and its settings.
        optimizer: settings of AdamW.
        sampler: lmix.rollout.VLLM or VLLMServers (docs/serve.md); null is lmix's own engine.

    Raises:
        ValueError: alpha is outside [0, 1], the weights do not match the adapters, a reward can't be imported, or the
            objective has a KL term while alpha is above 0 or weights are given.
    """

    def __init__(
        self,
        backbone: BackboneConfig = BackboneConfig(),
        adapters: AdapterConfig = AdapterConfig(),
        alpha: float = 0.5,
        mixture: MixtureKind = "logits",
        weights: list[float] | None = None,
        sampling: SamplingConfig = SamplingConfig(),
        rewards: dict[str, float] = {"verifier": 1.0},  # noqa: B006  # never changed
        objective: Objective = lazy_instance(GRPO),
        optimizer: OptimizerConfig = OptimizerConfig(),
        sampler: SamplerChoice | None = None,
    ) -> None:
        super().__init__(backbone, adapters, alpha, mixture, sampling, optimizer, weights, sampler)
        self.rewards = RewardSum(rewards, sampling.max_new_tokens)
        # the default is jsonargparse's lazy instance: it lists its settings in --help but is not initialised yet
        self.objective = self.default_objective() if hasattr(objective, "lazy_get_init_data") else objective
        if self.objective.needs_teacher and not self.has_teacher:
            raise ValueError(
                f"objective {type(self.objective).__name__} needs a teacher: give --model=lmix.DistillModule "
                "(configs/methods/distill.yaml) or lmix.SDPOModule (configs/methods/sdpo.yaml)"
            )
        if self.objective.needs_reference and (alpha or weights is not None):
            mixed = f"model.alpha {alpha:g}" if weights is None else f"model.weights {weights}"
            raise ValueError(
                f"objective.beta penalises the KL of the policy alone, but {mixed} trains a mixture: set model.alpha "
                "to 0 (configs/methods/kl_grpo.yaml) or objective.beta to 0"
            )

    default_objective: type[Objective] = GRPO
    has_teacher = False
    """Whether updates have a teacher; some objectives need one."""

    def setup(self, stage: str) -> None:
        super().setup(stage)
        prompts, parts = self.datamodule.prompts_per_step, self.objective.mini_batches
        if parts > prompts:
            raise ValueError(
                f"objective.mini_batches {parts} must be at most data.prompts_per_step {prompts}: each needs a prompt"
            )
        if stage == "fit" and self.objective.adds_demonstration:
            limit_demonstrations(self.datamodule, self.model_path, self.tokenizer)

    def training_step(self, batch: list[Prompt], batch_idx: int) -> None:
        """One outer step of Algorithm 1."""
        clock = Clock(self.device)
        groups = self.sample(batch)
        rollout_seconds = clock.lap()

        self.reward(groups)
        rollout_seconds += self.replace_dead(groups)

        clock.lap()
        rate = self.learning_rate()
        updates = self.mini_batches(groups)
        self.expect_passes(self.objective.inner_updates * sum(len(update.passes) for update in updates))
        for inner in range(self.objective.inner_updates):
            stats, norms = [], []
            for update in updates:
                stats.append(update.accumulate_gradient())
                last = inner == self.objective.inner_updates - 1 and update is updates[-1]
                norms.append(self.step_optimizer(last))
        self.sync_sampler()
        update_seconds = clock.lap()
        self.compute.draw(self.groups, [self.mixture])
        for update in updates:
            update.count_compute()

        norm = sum(norms) / len(norms)
        figures = {"train/grad_norm": norm, "train/lr": rate}
        self.log_step(groups, UpdateStats.over_steps(stats), figures, rollout_seconds, update_seconds)
        release_hidden(self.groups)

    def sample(self, batch: Sequence[Prompt]) -> list[Group]:
        """Sample G completions of each prompt from the mixed policy."""
        with naming_last_checkpoint(self):
            groups = self.decoder.complete(
                batch,
                self.draw(),
                self.mixture,
                self.sampling.samples_per_prompt,
                keep_frozen=self.sampling.keep_frozen,
                progress=self.progress,
            )
        self.note_nonfinite(groups)
        return groups

    def reward(self, groups: list[Group]) -> None:
        """Judge completions, set their rewards, and store them as the step's `groups`."""
        self.decoder.judge(groups)
        self.rewards(groups)
        self.groups = [*groups]

    def replace_dead(self, groups: list[Group]) -> float:
        """Replace dead groups by groups of other prompts, in place (DAPO's dynamic sampling, arXiv 2503.14476).

        The choice of prompts depends only on (seed, step, attempt) and on which groups are dead over all ranks. So no
        state needs to be saved, no prompt is sampled twice, and several ranks choose the same prompts as one. If no
        prompts are left, dead groups stay. Replaced groups stay in `self.groups`, and so in the logged rates.

        Returns:
            Seconds spent sampling.
        """
        if not self.sampling.resample_dead:
            return 0.0
        seconds, seen = 0.0, {int(i) for i in self.gather_shares([group.problem.id for group in groups])}
        for attempt in range(self.sampling.resample_dead):
            is_dead = self.gather_shares(dead_groups(self.rewards_of(groups)).tolist())
            dead = [place for place, flag in enumerate(is_dead) if flag]
            spare = self.datamodule.spare_prompts(len(dead), self.global_step, attempt, seen) if dead else []
            if not spare:
                break
            seen |= {prompt.problem.id for prompt in spare}
            mine = [pair for pair in zip(dead, spare, strict=False) if pair[0] % self.ranks == self.rank]
            clock, before = Clock(self.device), self.groups
            fresh = self.sample([prompt for _, prompt in mine])
            seconds += clock.lap()
            self.reward(fresh)
            self.groups = before + fresh
            for (place, _), group in zip(mine, fresh, strict=True):
                groups[place // self.ranks] = group
        return seconds

    def mini_batches(self, groups: Sequence[Group]) -> list[Update]:
        """Split the step's groups, in order, into one update per optimiser step of a pass.

        All updates but the first record their old log-probabilities here, before the policy changes (theta_old of
        eq. 5).
        """
        members = self.with_demonstrations(groups)
        advantages_PG = self.objective.advantages(self.rewards_of(members))
        (total,) = self.sum_over_ranks([len(groups)])
        places = [self.rank + i * self.ranks for i in range(len(groups))]
        parts = mini_batch_places(places, int(total), self.objective.mini_batches)
        updates = [self.update([members[i] for i in part], advantages_PG[part]) for part in parts]
        for update in updates[1:]:
            update.record_old()
        return updates

    def update(self, groups: Sequence[Group], advantages_PG: torch.Tensor) -> Update:
        """The update for the groups of one optimiser step. `advantages_PG` is `[P, G]`."""
        return Update(self, self.mixture, self.objective, groups, advantages_PG, self.sampling)

    def with_demonstrations(self, groups: Sequence[Group]) -> list[Group]:
        """The groups; if the objective uses demonstrations, each with its problem's, judged, as the last completion."""
        if not self.objective.adds_demonstration:
            return [*groups]
        shown = [demonstration(group.prompt, self.task, self.tokenizer) for group in groups]
        alone = [Group(group.prompt, [one]) for group, one in zip(groups, shown, strict=True)]
        self.decoder.judge(alone)
        self.rewards(alone)
        return [replace(g, rollouts=[*g.rollouts, one]) for g, one in zip(groups, shown, strict=True)]

    def rewards_of(self, groups: Sequence[Group]) -> torch.Tensor:
        """Rewards `[P, G]`."""
        drawn = self.sampling.samples_per_prompt + self.objective.adds_demonstration
        samples = len(groups[0].rollouts) if groups else drawn
        return torch.tensor([group.rewards for group in groups]).reshape(len(groups), samples)

    def log_step(
        self,
        groups: list[Group],
        stats: UpdateStats,
        same: dict[str, float],
        rollout_seconds: float,
        update_seconds: float,
    ) -> None:
        """Log a step's metrics: rates over all sampled completions, the others over those used in the update."""
        drawn, rollouts = flatten(self.groups), flatten(groups)
        tokens = sum(len(r.completion_ids) for r in drawn)
        update_tokens = sum(len(r.completion_ids) for r in rollouts)
        if stats.tokens and self.rank == 0:
            gap = stats.sums["sampler_gap_k3"] / stats.tokens
            warn_of_gap(gap, self.sampling.gap_warning, self.global_step)
        judgements = [r.judgement for r in drawn if r.judgement is not None]
        self.log_over_ranks(
            means={
                "train/reward": (sum(r.reward for r in drawn), len(drawn)),
                **self.rewards.means(drawn),
                "train/solve_rate": (sum(r.solved for r in drawn), len(drawn)),
                "train/answer_rate": (sum(j.answer_correct for j in judgements), len(drawn)),
                "train/right_anywhere_rate": (sum(j.right_anywhere for j in judgements), len(drawn)),
                "train/format_rate": (sum(j.format_correct for j in judgements), len(drawn)),
                # an unbiased estimate of the mixed policy's entropy per token: the mean of -log p of sampled tokens
                "train/entropy": (-sum(float(r.log_probs.sum()) for r in rollouts), update_tokens),
                "train/completion_length": (tokens, len(drawn)),
                "train/dead_groups": (int(dead_groups(self.rewards_of(groups)).sum()), len(groups)),
                **{f"train/{name}": (value, stats.tokens) for name, value in stats.sums.items()},
                "perf/rollout_seconds": (rollout_seconds, 1),
                "perf/update_seconds": (update_seconds, 1),
            },
            sums={
                "train/loss": stats.loss,
                "train/replaced_groups": len(self.groups) - len(groups),
                "train/verifier_failures": self.task.failures,
                "perf/rollout_tokens_per_second": tokens / rollout_seconds,
                "perf/train_tokens_per_second": update_tokens / update_seconds,
            },
            largest={"train/sampler_gap_max": stats.largest_gap},
            # the step is the x axis
            same={"step": self.global_step, "alpha": self.mixture.alpha, **same, **self.compute.collect(self)},
        )
