"""The gradient of a step's loss over all its rollouts, a micro-batch at a time.

Legend: P prompts, G samples of a prompt, B = P * G rollouts, b rows of a micro-batch, C tokens of the
longest completion.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lmix.functional import k3_kl, sampler_weights
from lmix.model.mixed_policy import MixedPolicy
from lmix.model.mixture import REFERENCE, Mixture
from lmix.rollout.packing import Packed, counted_mask, micro_batches, pack
from lmix.rollout.types import Group, flatten
from lmix.training.config import SamplingConfig
from lmix.training.objectives import Objective, Scored, StepTotals
from lmix.training.optimisation import OptimisedModule
from lmix.training.scoring import idle_rollout, score, score_stream


@dataclass
class UpdateStats:
    """What happened in the passes of one inner update, on one rank."""

    sums: dict[str, float]
    """Over the counted tokens that got a pass: what the objective logs, by its name, and the gap between the sampler's
    log-probabilities and the old ones (`sampler_logprob_gap`: absolute values; `sampler_gap_k3`: k3 estimates of
    KL(sampler || trainer)). The same names on every rank, whatever it scores."""
    loss: float = 0.0
    tokens: float = 0.0
    """Counted tokens that got a pass."""
    largest_gap: float = 0.0

    def add(self, scored: Scored, sampled_bC: Tensor, logged: Mapping[str, Tensor]) -> None:
        """Take a micro-batch in."""
        gap_bC = (scored.old - sampled_bC).abs().masked_fill(~scored.mask, 0.0)
        # in float64: a difference of rounding's size would be lost in exp(d) - d - 1
        k3_bC = k3_kl(sampled_bC.double(), scored.old.double()).masked_fill(~scored.mask, 0.0)
        for name, values_bC in {**logged, "sampler_logprob_gap": gap_bC, "sampler_gap_k3": k3_bC}.items():
            if name not in self.sums:
                raise ValueError(f"the objective's terms log {name!r}, which its `logged` does not name: add it there")
            self.sums[name] += float(values_bC.sum())
        self.tokens += float(scored.mask.sum())
        self.largest_gap = max(self.largest_gap, float(gap_bC.max()))


class Update:
    """One outer step's rollouts, to be differentiated once an inner update.

    The first pass over each micro-batch records the old log-probabilities of eq. 5 (so with one inner update the ratio
    is exactly 1) and the reference's, if the objective wants them.

    Args:
        module: whose policy is updated.
        mixture: what the rollouts were drawn from.
        objective: terms and weights of the loss.
        groups: this rank's groups.
        advantages_PG: of these.
        sampling: G, the length limit and whether frozen hidden states are kept.
    """

    def __init__(
        self,
        module: OptimisedModule,
        mixture: Mixture,
        objective: Objective,
        groups: Sequence[Group],
        advantages_PG: Tensor,
        sampling: SamplingConfig,
    ) -> None:
        self.module, self.mixture, self.objective, self.sampling = module, mixture, objective, sampling
        self.rollouts_B = flatten(groups)
        self.advantages_B = advantages_PG.flatten()
        self.weights_B = self._token_weights(len(groups)).flatten()
        # without a KL the gradient of a dead group is zero: it gets no pass, but the loss's normaliser counts it
        live = [i for i, a in enumerate(self.advantages_B.tolist()) if a != 0 or objective.needs_reference]
        passes, self.share_prompts = micro_batches(
            [self.rollouts_B[i] for i in live], objective.micro_batch_tokens, self.policy.shares_prefixes
        )
        self.passes = [[live[i] for i in rows] for rows in passes]
        self.idle_passes = module.idle_passes(len(passes))
        self.old: list[Tensor] = []
        self.reference: list[Tensor] = []
        self.updates = 0

    @property
    def policy(self) -> MixedPolicy:
        return self.module.policy

    def accumulate_gradient(self) -> UpdateStats:
        """Add the gradient of the loss over all rollouts.

        Returns:
            What happened, on this rank.
        """
        names = (*self.objective.logged, "sampler_logprob_gap", "sampler_gap_k3")
        stats = UpdateStats(dict.fromkeys(names, 0.0))
        for number, rows in enumerate(self.passes):
            rollouts_b = [self.rollouts_B[i] for i in rows]
            packed = pack(rollouts_b, self.module.device, self.share_prompts)
            scored = self._score(number, packed, self.advantages_B[rows].to(self.module.device))
            terms_bC, logged = self.objective.terms(scored)
            sampled_bC = packed.unflatten(torch.cat([r.log_probs for r in rollouts_b]).to(terms_bC.device))
            if self.objective.sampler_weight_cap is not None:
                terms_bC = terms_bC * sampler_weights(scored.old, sampled_bC, self.objective.sampler_weight_cap)
            losses_b = -(terms_bC * self.weights_B[rows].to(terms_bC)[:, None]).sum(dim=1)
            self.module.backward_and_check(losses_b, rollouts_b)
            stats.loss += float(losses_b.detach().sum())
            stats.add(scored, sampled_bC, logged)
        for _ in range(self.idle_passes):
            self._idle_pass()
        self.updates += 1
        return stats

    def _score(self, number: int, packed: Packed, advantages_b: Tensor) -> Scored:
        """Log-probabilities of micro-batch `number`."""
        log_probs_bC = packed.unflatten(score(self.policy, self.mixture, packed))
        if number == len(self.old):
            self.old.append(log_probs_bC.detach())
        if self.objective.needs_reference and number == len(self.reference):
            self.reference.append(packed.unflatten(score_stream(self.policy, packed, REFERENCE)))
        reference_bC = self.reference[number] if self.objective.needs_reference else None
        return Scored(log_probs_bC, self.old[number], advantages_b, packed.counted, reference_bC)

    def _idle_pass(self) -> None:
        """The passes of one micro-batch without its gradient, while other ranks have more of them."""
        rollout = idle_rollout(self.policy, self.mixture, self.sampling.keep_frozen)
        packed = pack([rollout], self.module.device)
        loss = 0.0 * score(self.policy, self.mixture, packed).sum()
        if self.objective.needs_reference and not self.updates:
            score_stream(self.policy, packed, REFERENCE)
        if loss.requires_grad:
            self.module.backward_here(loss)

    def _token_weights(self, groups: int) -> Tensor:
        """See `Objective.token_weights`; `[P, G]`. Every rank must call it."""
        if self.rollouts_B:
            tokens_PG = counted_mask(self.rollouts_B).sum(dim=1).view(groups, -1)
        else:
            tokens_PG = torch.zeros(0, self.sampling.samples_per_prompt, dtype=torch.long)
        all_groups, all_tokens = self.module.sum_over_ranks([groups, int(tokens_PG.sum())])
        sizes = self.sampling.samples_per_prompt, self.sampling.max_new_tokens
        return self.objective.token_weights(tokens_PG, StepTotals(int(all_groups), int(all_tokens), *sizes))
