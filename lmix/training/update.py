"""The gradient of an optimiser step's loss over its rollouts, one micro-batch at a time.

Legend: P prompts, G completions of a prompt, B = P * G rollouts, b rows of a micro-batch, C tokens of the
longest completion.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lmix.functional import sampler_weights
from lmix.model.mixed_policy import MixedPolicy
from lmix.model.mixture import POLICY, REFERENCE, Mixture
from lmix.rollout.packing import Packed, counted_mask, micro_batches, pack
from lmix.rollout.types import Group, flatten
from lmix.training.config import SamplingConfig
from lmix.training.objectives import Objective, Scored, StepTotals
from lmix.training.optimisation import OptimisedModule
from lmix.training.scoring import idle_rollout, score, score_stream, score_with_entropy
from lmix.training.update_stats import StatsTally, UpdateStats


class Update:
    """The rollouts of one optimiser step. Each pass over them (an inner update) computes a gradient.

    The old log-probabilities of eq. 5 are recorded by `record_old`, or else by the first pass, where the ratio is then
    exactly 1.

    Args:
        module: the module whose policy is updated.
        mixture: the mixture that the rollouts were sampled from.
        objective: terms and weights of the loss.
        groups: this rank's groups, all with the same number of completions.
        advantages_PG: their advantages, `[P, G]`.
        sampling: the length limit, and whether frozen hidden states are kept.
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
        self.optimised = mixture.only(POLICY) if objective.optimises_policy else mixture
        self.rollouts_B = flatten(groups)
        self.advantages_B = advantages_PG.flatten()
        self.weights_B = self._token_weights(*advantages_PG.shape).flatten()
        # dead groups have zero gradient in most objectives: they get no pass, but the loss's normaliser counts them
        live = [i for i, a in enumerate(self.advantages_B.tolist()) if a != 0 or objective.scores_dead_groups]
        passes, self.share_prompts = micro_batches(
            [self.rollouts_B[i] for i in live], objective.micro_batch_tokens, self.policy.shares_prefixes
        )
        self.passes = [[live[i] for i in rows] for rows in passes]
        self.idle_passes = module.idle_passes(len(passes))
        self.old: list[Tensor] = []
        self.reference: list[Tensor] = []
        self.updates, self.has_old = 0, False

    @property
    def policy(self) -> MixedPolicy:
        return self.module.policy

    def count_compute(self) -> None:
        """Count the compute of the passes so far: `updates` passes, and one forward for old log-probabilities."""
        rows = [self.rollouts_B[i] for passed in self.passes for i in passed]
        frozen = [s for s in self.optimised.streams if s != POLICY and not self.sampling.keep_frozen]
        if kl := self.objective.needs_reference:
            frozen.append(REFERENCE)
        for _ in range(self.updates):
            self.module.compute.train(rows, self.share_prompts, self.policy.update_passes, 2.0 + kl, frozen)
        if self.has_old or self.objective.optimises_policy:
            self.module.compute.train(rows, self.share_prompts, 1.0, 1.0)

    @torch.no_grad()
    def record_old(self) -> None:
        """Record the old log-probabilities now, before updates on other rollouts of the step change the policy."""
        for rows in self.passes:
            packed = pack([self.rollouts_B[i] for i in rows], self.module.device, self.share_prompts)
            self.old.append(self._drawn_from(packed))
        for _ in range(self.idle_passes):
            score(self.policy, self.mixture, self._idle_pack())
        self.has_old = True

    def accumulate_gradient(self) -> UpdateStats:
        """Add the gradient of the loss over all rollouts.

        Returns:
            Statistics of the pass on this rank.
        """
        tally = StatsTally(self.objective.logged)
        for number, rows in enumerate(self.passes):
            rollouts_b = [self.rollouts_B[i] for i in rows]
            packed = pack(rollouts_b, self.module.device, self.share_prompts)
            scored, entropy_bC = self._score(number, packed, rows)
            terms_bC, logged = self.objective.terms(scored)
            sampled_bC = packed.unflatten(torch.cat([r.log_probs for r in rollouts_b]).to(terms_bC.device))
            if self.objective.sampler_weight_cap is not None:
                terms_bC = terms_bC * sampler_weights(scored.old, sampled_bC, self.objective.sampler_weight_cap)
            if entropy_bC is not None:
                terms_bC = terms_bC + self.objective.entropy_bonus * entropy_bC.masked_fill(~scored.mask, 0.0)
            losses_b = -(terms_bC * self.weights_B[rows].to(terms_bC)[:, None]).sum(dim=1)
            self.module.backward_and_note(losses_b, rollouts_b)
            tally.add(losses_b.detach(), scored, sampled_bC, logged)
        for _ in range(self.idle_passes):
            self._idle_pass()
        self.updates += 1
        self.module.name_nonfinite()
        return tally.read()

    def _score(self, number: int, packed: Packed, rows: Sequence[int]) -> tuple[Scored, Tensor | None]:
        """Log-probabilities of micro-batch `number`, and entropies `[b, C]` if the objective has an entropy bonus."""
        entropy_bC = None
        if self.objective.entropy_bonus:
            log_probs_N, entropy_N = score_with_entropy(self.policy, self.optimised, packed)
            log_probs_bC, entropy_bC = packed.unflatten(log_probs_N), packed.unflatten(entropy_N)
        else:
            log_probs_bC = packed.unflatten(score(self.policy, self.optimised, packed))
        if not self.has_old and not self.updates:
            self.old.append(self._drawn_from(packed) if self.objective.optimises_policy else log_probs_bC.detach())
        if self.objective.needs_reference and not self.updates:
            self.reference.append(packed.unflatten(score_stream(self.policy, self.mixture, packed, REFERENCE)))
        return Scored(
            log_probs_bC,
            self.old[number],
            self.advantages_B[rows].to(self.module.device),
            packed.counted,
            self.reference[number] if self.objective.needs_reference else None,
            packed.demonstration if self.objective.adds_demonstration else None,
        ), entropy_bC

    @torch.no_grad()
    def _drawn_from(self, packed: Packed) -> Tensor:
        """Log-probabilities under the mixture that completions were sampled from, `[b, C]`."""
        return packed.unflatten(score(self.policy, self.mixture, packed))

    def _idle_pack(self) -> Packed:
        return pack([idle_rollout(self.policy, self.mixture, self.sampling.keep_frozen)], self.module.device)

    def _idle_pass(self) -> None:
        """The passes of one micro-batch with zero gradient, to keep pace with ranks that have more micro-batches."""
        packed, first = self._idle_pack(), not self.updates
        loss = 0.0 * score(self.policy, self.optimised, packed).sum()
        if self.objective.optimises_policy and first and not self.has_old:
            self._drawn_from(packed)
        if self.objective.needs_reference and first:
            score_stream(self.policy, self.mixture, packed, REFERENCE)
        if loss.requires_grad:
            self.module.backward_here(loss)

    def _token_weights(self, groups: int, samples: int) -> Tensor:
        """See `Objective.token_weights`; `[P, G]`. Every rank must call it."""
        if self.rollouts_B:
            tokens_PG = counted_mask(self.rollouts_B).sum(dim=1).view(groups, samples)
        else:
            tokens_PG = torch.zeros(0, samples, dtype=torch.long)
        demonstrations = tokens_PG[:, -1] if self.objective.adds_demonstration else tokens_PG[:, :0]
        here = [groups, int(tokens_PG.sum()), int(demonstrations.sum())]
        all_groups, all_tokens, all_demonstrations = map(int, self.module.sum_over_ranks(here))
        totals = StepTotals(
            all_groups,
            all_tokens,
            samples,
            self.sampling.max_new_tokens,
            self.module.global_step,
            all_demonstrations,
        )
        return self.objective.token_weights(tokens_PG, totals)
