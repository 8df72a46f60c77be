"""DAPO (Yu et al., arXiv 2503.14476)."""

from typing import Any

from lmix.training.objectives.grpo import GRPO


class DAPO(GRPO):
    """GRPO with clip-higher and the mean over all tokens of the update (eq. 8 and 12 of the DAPO paper).

    The other two of DAPO's four techniques are separate settings: dynamic sampling is `sampling.resample_dead`, and the
    soft penalty on overlong completions is the reward `overlong`. configs/methods/dapo.yaml has all four.

    Args:
        clip_radius: clip the ratio at 1 - clip_radius from below.
        clip_radius_above: clip the ratio at 1 + clip_radius_above from above.
        kwargs: arguments of `Objective`.
    """

    def __init__(self, clip_radius: float = 0.2, clip_radius_above: float = 0.28, **kwargs: Any) -> None:
        super().__init__(clip_radius, clip_radius_above, normaliser="batch", **kwargs)
