"""Group-relative advantages (eq. 4)."""

from typing import Literal

import torch
from torch import Tensor

AdvantageStd = Literal["population", "sample", "none"]
"""The standard deviation that eq. 4 divides by: over G, over G - 1, or no division (Dr. GRPO, arXiv 2503.20783)."""


def group_advantages(rewards_PG: Tensor, std: AdvantageStd = "population", eps: float = 1e-6) -> Tensor:
    """Advantages of eq. 4, `(R - mean) / (std + eps)` within each group.

    A dead group (all rewards equal) gets exact zeros, regardless of rounding.

    Args:
        rewards_PG: `[P, G]`, finite.
        std: the standard deviation; the paper does not say which.
        eps: added to the standard deviation.

    Returns:
        `[P, G]`, in the rewards' floating dtype (float32 for integer rewards).

    Raises:
        ValueError: `rewards_PG` is not two-dimensional or holds a value that is not finite.
    """
    if rewards_PG.dim() != 2:
        raise ValueError(f"rewards must be [P, G], not of shape {tuple(rewards_PG.shape)}")
    rewards_PG = rewards_PG if rewards_PG.is_floating_point() else rewards_PG.float()
    if not torch.isfinite(rewards_PG).all():
        raise ValueError("rewards must be finite: a NaN or Inf reward has no advantage")
    centred_PG = rewards_PG - rewards_PG.mean(dim=1, keepdim=True)
    if std != "none":
        correction = 1 if std == "sample" else 0
        centred_PG = centred_PG / (rewards_PG.std(dim=1, keepdim=True, correction=correction) + eps)
    return centred_PG.masked_fill(dead_groups(rewards_PG)[:, None], 0.0)


def dead_groups(rewards_PG: Tensor) -> Tensor:
    """Which groups have exactly equal rewards, and so no gradient: `[P]`, bool."""
    return (rewards_PG == rewards_PG[:, :1]).all(dim=1)


def leave_one_out_advantages(rewards_PG: Tensor) -> Tensor:
    """Advantages against the mean reward of the group's other completions (RLOO, Ahmadian et al., arXiv 2402.14740).

    `R_i - mean_{j != i} R_j = G / (G - 1) (R_i - mean)`; a group of one has exact zeros. Shapes and errors as in
    `group_advantages`.
    """
    samples = rewards_PG.shape[-1]
    return group_advantages(rewards_PG, "none") * (samples / max(samples - 1, 1))
