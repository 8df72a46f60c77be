"""Distillation: a divergence from the teacher at each token that the student sampled, instead of a reward."""

from typing import Any

import torch
from torch import Tensor

from lmix.functional import Divergence, DivergenceKind
from lmix.training.objectives.normalisers import NORMALISERS, Normaliser
from lmix.training.objectives.objective import Objective, Scored, StepTotals


class Distillation(Objective):
    """`- D(student, teacher)` at each token, over the whole vocabulary. For lmix.DistillModule and lmix.SDPOModule.

    Args:
        divergence: reverse_kl is KL(student || teacher), which is mode-seeking (MiniLLM, arXiv 2306.08543; "On-Policy
            Distillation", Thinking Machines, 2025). forward_kl is KL(teacher || student), which covers all modes of the
            teacher. jensen is GKD's generalised Jensen-Shannon divergence (arXiv 2306.13649, eq. 1).
        blend: b of jensen, in (0, 1). Near 0 it behaves like forward_kl, near 1 like reverse_kl.
        normaliser: what a token's divergence is averaged over; see `GRPO`.
        kwargs: arguments of `Objective`.

    Raises:
        ValueError: blend is outside (0, 1).
    """

    needs_teacher = True
    logged = ("divergence",)

    def __init__(
        self,
        divergence: DivergenceKind = "reverse_kl",
        blend: float = 0.5,
        normaliser: Normaliser = "batch",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not 0 < blend < 1:
            raise ValueError(f"objective.blend must lie between 0 and 1, not {blend}: 0.5 is usual")
        self.divergence = Divergence(divergence, blend)
        self.normaliser: Normaliser = normaliser

    def advantages(self, rewards_PG: Tensor) -> Tensor:
        """1 for every completion: rewards are not used."""
        return torch.ones_like(rewards_PG, dtype=torch.float32)

    def terms(self, scored: Scored) -> tuple[Tensor, dict[str, Tensor]]:
        """The negative divergence."""
        assert scored.divergence is not None
        divergence_bC = scored.divergence.masked_fill(~scored.mask, 0.0)
        return -divergence_bC, {"divergence": divergence_bC.detach()}

    def token_weights(self, tokens_PG: Tensor, totals: StepTotals) -> Tensor:
        """See `normaliser`."""
        return NORMALISERS[self.normaliser](tokens_PG, totals)
