"""CISPO (MiniMax-M1, arXiv 2506.13585)."""

import math
from typing import Any

from torch import Tensor

from lmix.functional import group_advantages
from lmix.training.objectives.normalisers import per_batch
from lmix.training.objectives.objective import Objective, Scored, StepTotals


class CISPO(Objective):
    """REINFORCE with a clipped importance weight that is not differentiated, so that every token keeps a gradient.

    `sum_{i, t} sg(min(r, 1 + c)) A log pi / sum_i |y_i|` (eq. 4 and 5 of the MiniMax-M1 paper; as its authors do,
    without a lower bound).

    Args:
        clip_radius_above: c; weights are clipped at 1 + c.
        kwargs: arguments of `Objective`.

    Raises:
        ValueError: c is not positive.
    """

    logged = ("clip_fraction",)

    def __init__(self, clip_radius_above: float = 0.28, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 < clip_radius_above < math.inf:
            raise ValueError(f"objective.clip_radius_above must be positive, not {clip_radius_above}")
        self.clip_radius_above = clip_radius_above

    def advantages(self, rewards_PG: Tensor) -> Tensor:
        """Eq. 4."""
        return group_advantages(rewards_PG)

    def terms(self, scored: Scored) -> tuple[Tensor, dict[str, Tensor]]:
        """`sg(min(r, 1 + c)) A log pi` of each token."""
        ratio_bC = (scored.log_probs.detach() - scored.old).masked_fill(~scored.mask, 0.0).exp()
        weight_bC = ratio_bC.clamp(max=1.0 + self.clip_radius_above)
        terms_bC = weight_bC * scored.advantages[:, None] * scored.log_probs
        return terms_bC.masked_fill(~scored.mask, 0.0), {"clip_fraction": ratio_bC > weight_bC}

    def token_weights(self, tokens_PG: Tensor, totals: StepTotals) -> Tensor:
        """The mean over all tokens."""
        return per_batch(tokens_PG, totals)
