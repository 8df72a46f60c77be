"""LUFFY: demonstrations as off-policy members of a group (Yan et al., arXiv 2504.14945)."""

import math
from typing import Any

import torch
from torch import Tensor

from lmix.functional import shaped_probability
from lmix.training.objectives.grpo import GRPO
from lmix.training.objectives.objective import Scored


class LUFFY(GRPO):
    """GRPO over groups of sampled completions and the problem's demonstration (eq. 5 and 6 of the LUFFY paper).

    The demonstration is judged like the others and takes part in the advantages (eq. 4 of Gan & Zhu). Its old
    probability counts as 1, so its ratio is pi itself, shaped to `pi / (pi + gamma)` and not clipped.

    Args:
        gamma: parameter of the shaping; smaller values favour unlikely tokens more.
        kwargs: arguments of `GRPO`, except `beta`.

    Raises:
        ValueError: gamma is not positive, or `beta` is not 0.
    """

    adds_demonstration = True

    def __init__(self, gamma: float = 0.1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 < gamma < math.inf:
            raise ValueError(f"objective.gamma must be positive, not {gamma}")
        if self.beta:
            raise ValueError(f"objective.beta must be 0 for LUFFY, not {self.beta}: its anchor is the demonstration")
        self.gamma = gamma

    def surrogate(self, scored: Scored) -> tuple[Tensor, Tensor]:
        """The clipped surrogate for sampled completions, `A pi / (pi + gamma)` for demonstrations."""
        assert scored.demonstration is not None
        terms_bC, clipped_bC = super().surrogate(scored)
        off_policy_bC = scored.demonstration[:, None] & scored.mask
        shaped_bC = shaped_probability(scored.log_probs.masked_fill(~scored.mask, 0.0), self.gamma)
        shaped_bC = scored.advantages[:, None] * shaped_bC
        return torch.where(off_policy_bC, shaped_bC, terms_bC), clipped_bC & ~off_policy_bC
