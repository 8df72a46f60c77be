"""GRPO: the clipped surrogate over group-relative advantages (eq. 4-6), with the KL of the baseline by option."""

import math
from typing import Literal

import torch
from torch import Tensor

from lmix.functional import clipped_surrogate, group_advantages, group_token_weights, k3_kl
from lmix.training.objectives.objective import Objective, Scored, StepTotals


class GRPO(Objective):
    """The paper's objective (eq. 4-6); options give the variants of DAPO and Dr. GRPO, and the baseline KL-GRPO.

    Args:
        clip_radius: half-width of the interval around 1 that the ratio is clipped to.
        clip_radius_above: another half-width above 1 (DAPO's clip-higher, 0.28); null takes clip_radius.
        normaliser: group: each group's tokens, then the mean over groups (eq. 6). batch: all tokens of the step (DAPO,
            arXiv 2503.14476). constant: the length limit times the step's completions (Dr. GRPO, arXiv 2503.20783).
        scale_by_std: divide advantages by the group's standard deviation (eq. 4); false leaves that out (Dr. GRPO).
        beta: weight of the per-token KL to the reference (k3 estimate): the baseline KL-GRPO. The mixture needs none.
        kwargs: of `Objective`.

    Raises:
        ValueError: a setting outside its range.
    """

    def __init__(
        self,
        clip_radius: float = 0.2,
        clip_radius_above: float | None = None,
        normaliser: Literal["group", "batch", "constant"] = "group",
        scale_by_std: bool = True,
        beta: float = 0.0,
        **kwargs: int,
    ) -> None:
        super().__init__(**kwargs)
        if not 0 < clip_radius < 1:
            raise ValueError(f"objective.clip_radius must lie between 0 and 1, not {clip_radius}")
        if clip_radius_above is not None and not clip_radius_above > 0:
            raise ValueError(f"objective.clip_radius_above must be positive, not {clip_radius_above}")
        if not 0 <= beta < math.inf:
            raise ValueError(f"objective.beta must be at least 0, not {beta}")
        self.clip = clip_radius, clip_radius if clip_radius_above is None else clip_radius_above
        self.normaliser, self.scale_by_std, self.beta = normaliser, scale_by_std, beta
        self.needs_reference = beta > 0
        self.logged = ("clip_fraction", "kl") if beta else ("clip_fraction",)

    def advantages(self, rewards_PG: Tensor) -> Tensor:
        """Eq. 4."""
        return group_advantages(rewards_PG, scale_by_std=self.scale_by_std)

    def terms(self, scored: Scored) -> tuple[Tensor, dict[str, Tensor]]:
        """The surrogate, less the KL where there is one."""
        terms_bC, clipped_bC = self.surrogate(scored)
        logged = {"clip_fraction": clipped_bC}
        if scored.reference is not None:
            kl_bC = k3_kl(scored.log_probs, scored.reference).masked_fill(~scored.mask, 0.0)
            terms_bC = terms_bC - self.beta * kl_bC
            logged["kl"] = kl_bC.detach()
        return terms_bC, logged

    def surrogate(self, scored: Scored) -> tuple[Tensor, Tensor]:
        """Eq. 5 and the summand of eq. 6: `[b, C]`, and which tokens the clip holds."""
        return clipped_surrogate(scored.log_probs, scored.old, scored.advantages, scored.mask, self.clip)[:2]

    def token_weights(self, tokens_PG: Tensor, totals: StepTotals) -> Tensor:
        """The normaliser of eq. 6, or a variant's."""
        if self.normaliser == "batch":
            return torch.full(tokens_PG.shape, 1.0 / max(totals.tokens, 1))
        if self.normaliser == "constant":
            return torch.full(tokens_PG.shape, 1.0 / (totals.max_new_tokens * totals.samples * max(totals.groups, 1)))
        group_B = torch.arange(len(tokens_PG)).repeat_interleave(totals.samples)
        weights_B = group_token_weights(tokens_PG.flatten(), group_B)
        return weights_B.view_as(tokens_PG) * (len(tokens_PG) / max(totals.groups, 1))
