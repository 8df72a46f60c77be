"""What happened in the passes of an optimiser step: sums that stay on the device until its end.

Legend: b rows of a micro-batch, C tokens of the longest completion.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lmix.functional import k3_kl
from lmix.training.objectives import Scored


@dataclass
class UpdateStats:
    """What happened in the passes of one optimiser step, or of several, on one rank."""

    sums: dict[str, float]
    """Over the counted tokens that got a pass: what the objective logs, by its name, and the gap between the sampler's
    log-probabilities and the old ones (`sampler_logprob_gap`: absolute values; `sampler_gap_k3`: k3 estimates of
    KL(sampler || trainer)). The same names on every rank, whatever it scores."""
    loss: float = 0.0
    tokens: float = 0.0
    """Counted tokens that got a pass."""
    largest_gap: float = 0.0

    @classmethod
    def over_steps(cls, steps: Sequence["UpdateStats"]) -> "UpdateStats":
        """Those of several optimiser steps: sums over all tokens, and the mean loss."""
        sums = {name: sum(step.sums[name] for step in steps) for name in steps[0].sums}
        loss = sum(step.loss for step in steps) / len(steps)
        return cls(sums, loss, sum(step.tokens for step in steps), max(step.largest_gap for step in steps))


class StatsTally:
    """Collects a step's figures micro-batch by micro-batch. A GPU is waited for in `read` only, once a step.

    Args:
        logged: names of what the objective's terms log.
    """

    def __init__(self, logged: Sequence[str]) -> None:
        self.names = (*logged, "sampler_logprob_gap", "sampler_gap_k3")
        self._figures: list[Tensor] = []

    def add(self, losses_b: Tensor, scored: Scored, sampled_bC: Tensor, logged: Mapping[str, Tensor]) -> None:
        """Take a micro-batch in.

        Raises:
            ValueError: `logged` has a name that the objective does not announce.
        """
        drawn_bC = scored.mask if scored.demonstration is None else scored.mask & ~scored.demonstration[:, None]
        gap_bC = (scored.old - sampled_bC).abs().masked_fill(~drawn_bC, 0.0)
        # in float64: a difference of rounding's size would be lost in exp(d) - d - 1
        k3_bC = k3_kl(sampled_bC.double(), scored.old.double()).masked_fill(~drawn_bC, 0.0)
        values = {**logged, "sampler_logprob_gap": gap_bC, "sampler_gap_k3": k3_bC}
        if unknown := [name for name in values if name not in self.names]:
            raise ValueError(
                f"the objective's terms log {unknown[0]!r}, which its `logged` does not name: add it there"
            )
        zero = losses_b.new_zeros(())
        sums = [values[name].sum() if name in values else zero for name in self.names]
        figures = [losses_b.sum(), scored.mask.sum(), gap_bC.max(), *sums]
        self._figures.append(torch.stack([figure.double() for figure in figures]))

    def read(self) -> UpdateStats:
        """The step's figures."""
        if not self._figures:
            return UpdateStats(dict.fromkeys(self.names, 0.0))
        columns = zip(*torch.stack(self._figures).tolist(), strict=True)
        losses, tokens, gaps, *sums = columns
        return UpdateStats(
            {name: sum(column) for name, column in zip(self.names, sums, strict=True)},
            sum(losses),
            sum(tokens),
            max(0.0, *gaps),
        )
