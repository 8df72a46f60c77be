"""GSPO (Zheng et al., "Group Sequence Policy Optimization", arXiv 2507.18071)."""

from typing import Any

import torch
from torch import Tensor

from lmix.functional import group_advantages
from lmix.training.objectives.grpo import clip_interval
from lmix.training.objectives.normalisers import per_response
from lmix.training.objectives.objective import Objective, Scored, StepTotals


class GSPO(Objective):
    """The clipped surrogate over whole completions: `mean_i min(s_i A_i, clip(s_i) A_i)` (eq. 5 of the GSPO paper).

    `s_i = (pi(y_i) / pi_old(y_i))^(1 / |y_i|)` is the geometric mean of the token ratios (eq. 7 there). It stays much
    closer to 1 than token ratios do, so the clipping interval is far narrower.

    Args:
        clip_radius: clip the ratio at 1 - clip_radius from below.
        clip_radius_above: clip the ratio at 1 + clip_radius_above from above.
        kwargs: arguments of `Objective`, except `sampler_weight_cap`, which weights single tokens.

    Raises:
        ValueError: a setting is out of range.
    """

    logged = ("clip_fraction",)

    def __init__(self, clip_radius: float = 3e-4, clip_radius_above: float = 4e-4, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.clip = clip_interval(clip_radius, clip_radius_above)
        if self.sampler_weight_cap is not None:
            raise ValueError("objective.sampler_weight_cap weighs tokens, but GSPO weighs whole completions: set null")

    def advantages(self, rewards_PG: Tensor) -> Tensor:
        """Eq. 4."""
        return group_advantages(rewards_PG)

    def terms(self, scored: Scored) -> tuple[Tensor, dict[str, Tensor]]:
        """The completion's term, repeated at each of its tokens; `token_weights` averages over them."""
        tokens_b = scored.mask.sum(dim=1).clamp(min=1)
        log_ratio_bC = (scored.log_probs - scored.old).masked_fill(~scored.mask, 0.0)
        ratio_b = (log_ratio_bC.sum(dim=1) / tokens_b).exp()
        clipped_b = ratio_b.clamp(1.0 - self.clip[0], 1.0 + self.clip[1])
        terms_b = torch.minimum(ratio_b * scored.advantages, clipped_b * scored.advantages)
        held_b = terms_b != ratio_b * scored.advantages
        return terms_b[:, None] * scored.mask, {"clip_fraction": held_b[:, None] & scored.mask}

    def token_weights(self, tokens_PG: Tensor, totals: StepTotals) -> Tensor:
        """The mean over completions."""
        return per_response(tokens_PG, totals)
