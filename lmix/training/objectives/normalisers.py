"""Normalisers: the weight of a completion's tokens in the loss, from token counts `[P, G]` to weights `[P, G]`.

Legend: P prompts (groups), G completions of a group. Weights of a step over all ranks sum to at most 1 per group.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from lmix.functional import group_token_weights
from lmix.training.objectives.objective import StepTotals

Normaliser = Literal["group", "batch", "response", "constant"]


def per_group(tokens_PG: Tensor, totals: StepTotals) -> Tensor:
    """The mean over a group's tokens, then over groups (eq. 6)."""
    group_B = torch.arange(len(tokens_PG)).repeat_interleave(tokens_PG.shape[1])
    weights_B = group_token_weights(tokens_PG.flatten(), group_B)
    return weights_B.view_as(tokens_PG) * (len(tokens_PG) / max(totals.groups, 1))


def per_batch(tokens_PG: Tensor, totals: StepTotals) -> Tensor:
    """The mean over all tokens of the update (DAPO, arXiv 2503.14476)."""
    return torch.full(tokens_PG.shape, 1.0 / max(totals.tokens, 1))


def per_response(tokens_PG: Tensor, totals: StepTotals) -> Tensor:
    """The mean over a completion's tokens, then over completions.

    As in the original GRPO (arXiv 2402.03300), and in the code of the paper's authors.
    """
    return 1.0 / (tokens_PG.clamp(min=1) * totals.completions)


def per_limit(tokens_PG: Tensor, totals: StepTotals) -> Tensor:
    """The sum over a completion's tokens divided by the length limit, then the mean over completions.

    As in Dr. GRPO (arXiv 2503.20783).
    """
    return torch.full(tokens_PG.shape, 1.0 / (totals.max_new_tokens * totals.completions))


def per_sequence(tokens_PG: Tensor, totals: StepTotals) -> Tensor:
    """The sum over a completion's tokens, as for a single action, then the mean over completions."""
    return torch.full(tokens_PG.shape, 1.0 / totals.completions)


NORMALISERS: dict[Normaliser, Callable[[Tensor, StepTotals], Tensor]] = {
    "group": per_group,
    "batch": per_batch,
    "response": per_response,
    "constant": per_limit,
}
