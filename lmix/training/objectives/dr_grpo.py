"""Dr. GRPO (Liu et al., "Understanding R1-Zero-Like Training", arXiv 2503.20783)."""

from typing import Any

from lmix.training.objectives.grpo import GRPO


class DrGRPO(GRPO):
    """GRPO without its two biases: advantages `R - mean`, and sums over tokens divided by a constant.

    `1 / (P G L) * sum_{i, t} min(r A, clip(r) A)` with the length limit L: neither a completion's length nor a
    group's spread of rewards changes what a token weighs.

    Args:
        clip_radius: half-width of the interval around 1 that the ratio is clipped to.
        kwargs: of `Objective`.
    """

    def __init__(self, clip_radius: float = 0.2, **kwargs: Any) -> None:
        super().__init__(clip_radius, normaliser="constant", advantage_std="none", **kwargs)
