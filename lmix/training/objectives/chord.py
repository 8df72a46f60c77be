"""CHORD: an SFT term in the RL loss (Zhang et al., "On-Policy RL Meets Off-Policy Experts", arXiv 2508.11408)."""

import math
from typing import Any

import torch
from torch import Tensor

from lmix.functional import uncertainty_weight
from lmix.training.objectives.grpo import GRPO
from lmix.training.objectives.objective import Scored, StepTotals


class CHORD(GRPO):
    """`(1 - mu) L_GRPO + mu L_SFT` (eq. 4 of the CHORD paper), with the demonstrations of the step's own problems.

    mu follows a cosine from its peak in the first step down to its valley. With `phi`, a demonstration token of
    probability p has weight p (1 - p) (eq. 5 there), so tokens that the model already knows and tokens that it finds
    very unlikely both count little.

    Args:
        mu_peak: weight of the SFT loss in the first step.
        mu_valley: weight of the SFT loss after `mu_decay_steps`.
        mu_decay_steps: outer steps over which the weight falls.
        phi: weight the demonstration tokens by p (1 - p).
        kwargs: arguments of `GRPO`, except `beta`.

    Raises:
        ValueError: a weight is outside [0, 1], `mu_decay_steps` is below 1, or `beta` is not 0.
    """

    adds_demonstration = True

    def __init__(
        self,
        mu_peak: float = 0.5,
        mu_valley: float = 0.02,
        mu_decay_steps: int = 40,
        phi: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name, value in (("mu_peak", mu_peak), ("mu_valley", mu_valley)):
            if not 0 <= value <= 1:
                raise ValueError(f"objective.{name} must lie in [0, 1], not {value}")
        if mu_decay_steps < 1:
            raise ValueError(f"objective.mu_decay_steps must be at least 1, not {mu_decay_steps}")
        if self.beta:
            raise ValueError(f"objective.beta must be 0 for CHORD, not {self.beta}: its anchor is the demonstration")
        self.mu_peak, self.mu_valley, self.mu_decay_steps, self.phi = mu_peak, mu_valley, mu_decay_steps, phi
        self.logged = (*self.logged, "sft_nll")

    def mu(self, step: int) -> float:
        """The weight of the SFT loss in an outer step, counted from 0."""
        left = 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / self.mu_decay_steps)))
        return self.mu_valley + (self.mu_peak - self.mu_valley) * left

    def advantages(self, rewards_PG: Tensor) -> Tensor:
        """Eq. 4 (of Gan & Zhu) over the sampled completions. The demonstration, which is last, gets 1: it is scored."""
        sampled_PG = super().advantages(rewards_PG[:, :-1])
        return torch.cat([sampled_PG, torch.ones_like(rewards_PG[:, -1:])], dim=1)

    def terms(self, scored: Scored) -> tuple[Tensor, dict[str, Tensor]]:
        """The surrogate for sampled completions, `phi log pi` for demonstrations."""
        assert scored.demonstration is not None
        terms_bC, logged = super().terms(scored)
        sft_bC = scored.demonstration[:, None] & scored.mask
        weight_bC = uncertainty_weight(scored.log_probs) if self.phi else 1.0
        log_probs_bC = scored.log_probs.masked_fill(~sft_bC, 0.0)
        logged = {"clip_fraction": logged["clip_fraction"] & ~sft_bC, "sft_nll": -log_probs_bC.detach()}
        return torch.where(sft_bC, weight_bC * log_probs_bC, terms_bC), logged

    def token_weights(self, tokens_PG: Tensor, totals: StepTotals) -> Tensor:
        """GRPO's weights times `1 - mu` for sampled completions, mu times a mean over tokens for demonstrations."""
        mu = self.mu(totals.step)
        rl_PG = (1.0 - mu) * super().token_weights(tokens_PG[:, :-1], totals.of_samples)
        sft_P1 = torch.full((len(tokens_PG), 1), mu / max(totals.demonstration_tokens, 1))
        return torch.cat([rl_PG, sft_P1], dim=1)
