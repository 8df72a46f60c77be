"""RLOO: REINFORCE with a leave-one-out baseline (Ahmadian et al., arXiv 2402.14740)."""

from torch import Tensor

from lmix.functional import leave_one_out_advantages
from lmix.training.objectives.normalisers import per_sequence
from lmix.training.objectives.objective import Objective, Scored, StepTotals


class RLOO(Objective):
    """REINFORCE on whole completions: `mean_i (R_i - mean_{j != i} R_j) sum_t log pi(y_{i,t})`.

    There is no ratio and no clipping. With several optimiser steps per outer step, the later ones are off-policy
    without a correction.
    """

    def advantages(self, rewards_PG: Tensor) -> Tensor:
        """`R_i` minus the mean reward of the group's other completions (eq. 8 of the RLOO paper)."""
        return leave_one_out_advantages(rewards_PG)

    def terms(self, scored: Scored) -> tuple[Tensor, dict[str, Tensor]]:
        """`A log pi` of each token."""
        return (scored.advantages[:, None] * scored.log_probs).masked_fill(~scored.mask, 0.0), {}

    def token_weights(self, tokens_PG: Tensor, totals: StepTotals) -> Tensor:
        """The sum over tokens, since a completion is one action."""
        return per_sequence(tokens_PG, totals)
