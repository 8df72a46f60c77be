"""Dr. GRPO (Liu et al., "Understanding R1-Zero-Like Training", arXiv 2503.20783)."""

from typing import Any

from lmix.training.objectives.grpo import GRPO


class DrGRPO(GRPO):
    """GRPO without its two biases: advantages are `R - mean`, and sums over tokens are divided by a constant.

    `1 / (P G L) * sum_{i, t} min(r A, clip(r) A)` with P prompts, G completions of each, and the length limit L. The
    weight of a token depends neither on the length of its completion nor on the spread of rewards in its group.

    Args:
        clip_radius: half-width of the interval around 1 that the ratio is clipped to.
        kwargs: arguments of `Objective`.
    """

    def __init__(self, clip_radius: float = 0.2, **kwargs: Any) -> None:
        super().__init__(clip_radius, normaliser="constant", advantage_std="none", **kwargs)
