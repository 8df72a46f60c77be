"""Group-relative advantages (eq. 4)."""

import torch
from torch import Tensor


def group_advantages(rewards_PG: Tensor, eps: float = 1e-6, scale_by_std: bool = True) -> Tensor:
    """Advantages of eq. 4, `(R - mean) / (std + eps)` within each group, with the population standard deviation.

    A dead group (all rewards equal) gets exact zeros, whatever its rewards' rounding.

    Args:
        rewards_PG: `[P, G]`, finite.
        eps: added to the standard deviation.
        scale_by_std: False leaves the division out (Dr. GRPO, Liu et al., arXiv 2503.20783).

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
    if scale_by_std:
        centred_PG = centred_PG / (rewards_PG.std(dim=1, keepdim=True, correction=0) + eps)
    return centred_PG.masked_fill(dead_groups(rewards_PG)[:, None], 0.0)


def dead_groups(rewards_PG: Tensor) -> Tensor:
    """Which groups have exactly equal rewards, and so no gradient: `[P]`, bool."""
    return (rewards_PG == rewards_PG[:, :1]).all(dim=1)
