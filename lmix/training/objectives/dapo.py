"""DAPO (Yu et al., arXiv 2503.14476)."""

from typing import Any

from lmix.training.objectives.grpo import GRPO


class DAPO(GRPO):
    """GRPO with clip-higher and the mean over all tokens of the update (eq. 8 and 12 there).

    The other two of its four parts are no objective: dynamic sampling is `sampling.resample_dead`, and the soft
    punishment of overlong completions is the reward `overlong`. configs/methods/dapo.yaml has all four.

    Args:
        clip_radius: half-width of the ratio's interval below 1.
        clip_radius_above: half-width above 1.
        kwargs: of `Objective`.
    """

    def __init__(self, clip_radius: float = 0.2, clip_radius_above: float = 0.28, **kwargs: Any) -> None:
        super().__init__(clip_radius, clip_radius_above, normaliser="batch", **kwargs)
