"""GRPO: the clipped surrogate with group-relative advantages (eq. 4-6), and optionally the baseline's KL term."""

import math
from typing import Any

from torch import Tensor

from lmix.functional import AdvantageStd, clipped_surrogate, group_advantages, k3_kl
from lmix.training.objectives.normalisers import NORMALISERS, Normaliser
from lmix.training.objectives.objective import Objective, Scored, StepTotals


class GRPO(Objective):
    """The paper's objective (eq. 4-6), and the baseline KL-GRPO.

    Args:
        clip_radius: half-width of the interval around 1 that the ratio is clipped to.
        clip_radius_above: a different half-width above 1 (DAPO's clip-higher, 0.28); null uses clip_radius.
        normaliser: how token terms are averaged. group: the mean over a group's tokens, then over groups (eq. 6).
            batch: the mean over all tokens of the update (DAPO). response: the mean over a completion's tokens, then
            over completions (the authors' code). constant: the sum over a completion's tokens divided by the length
            limit, then the mean over completions (Dr. GRPO).
        advantage_std: the standard deviation in eq. 4: population (divided by G), sample (divided by G - 1, the
            authors' code) or none (Dr. GRPO).
        beta: weight of the per-token KL to the reference (k3 estimate), for the baseline KL-GRPO. It needs alpha 0.
        kwargs: arguments of `Objective`.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        clip_radius: float = 0.2,
        clip_radius_above: float | None = None,
        normaliser: Normaliser = "group",
        advantage_std: AdvantageStd = "population",
        beta: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.clip = clip_interval(clip_radius, clip_radius_above)
        if not 0 <= beta < math.inf:
            raise ValueError(f"objective.beta must be at least 0, not {beta}")
        self.normaliser: Normaliser = normaliser
        self.advantage_std: AdvantageStd = advantage_std
        self.beta = beta
        self.needs_reference = beta > 0
        self.logged = ("clip_fraction", "kl") if beta else ("clip_fraction",)

    def advantages(self, rewards_PG: Tensor) -> Tensor:
        """Eq. 4."""
        return group_advantages(rewards_PG, self.advantage_std)

    def terms(self, scored: Scored) -> tuple[Tensor, dict[str, Tensor]]:
        """The surrogate, minus the KL term if `beta` is set."""
        terms_bC, clipped_bC = self.surrogate(scored)
        logged = {"clip_fraction": clipped_bC}
        if scored.reference is not None:
            kl_bC = k3_kl(scored.log_probs, scored.reference).masked_fill(~scored.mask, 0.0)
            terms_bC = terms_bC - self.beta * kl_bC
            logged["kl"] = kl_bC.detach()
        return terms_bC, logged

    def surrogate(self, scored: Scored) -> tuple[Tensor, Tensor]:
        """The ratio of eq. 5 in the summand of eq. 6, `[b, C]`, and which tokens are clipped, `[b, C]`."""
        return clipped_surrogate(scored.log_probs, scored.old, scored.advantages, scored.mask, self.clip)[:2]

    def token_weights(self, tokens_PG: Tensor, totals: StepTotals) -> Tensor:
        """The weights of `normaliser`; `group` is that of eq. 6."""
        return NORMALISERS[self.normaliser](tokens_PG, totals)


def clip_interval(below: float, above: float | None) -> tuple[float, float]:
    """The half-widths of the ratio's interval below and above 1. Raises ValueError if one is out of range."""
    if not 0 < below < 1:
        raise ValueError(f"objective.clip_radius must lie between 0 and 1, not {below}")
    if above is not None and not 0 < above < math.inf:
        raise ValueError(f"objective.clip_radius_above must be positive, not {above}")
    return below, below if above is None else above
