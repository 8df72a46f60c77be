"""Statistics of an optimiser step's passes. Sums stay on the device until the end of the step.

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
    """Statistics of the passes of one or several optimiser steps, on one rank."""

    sums: dict[str, float]
    """Sums over the counted tokens that got a pass: what the objective logs, by name, and the gap between the sampler's
    and the old log-probabilities (`sampler_logprob_gap`: absolute differences; `sampler_gap_k3`: k3 estimates of
    KL(sampler || trainer)). All ranks have the same names, even one that scores nothing."""
    loss: float = 0.0
    tokens: float = 0.0
    """Counted tokens that got a pass."""
    largest_gap: float = 0.0

    @classmethod
    def over_steps(cls, steps: Sequence["UpdateStats"]) -> "UpdateStats":
        """Combine several optimiser steps: sums over all tokens, and the mean loss."""
        sums = {name: sum(step.sums[name] for step in steps) for name in steps[0].sums}
        loss = sum(step.loss for step in steps) / len(steps)
        return cls(sums, loss, sum(step.tokens for step in steps), max(step.largest_gap for step in steps))


class StatsTally:
    """Collects a step's statistics by micro-batch. Only `read` waits for a GPU, once per step.

    Args:
        logged: names of the values that the objective's `terms` logs.
    """

    def __init__(self, logged: Sequence[str]) -> None:
        self.names = (*logged, "sampler_logprob_gap", "sampler_gap_k3")
        self._figures: list[Tensor] = []

    def add(self, losses_b: Tensor, scored: Scored, sampled_bC: Tensor, logged: Mapping[str, Tensor]) -> None:
        """Add a micro-batch.

        Args:
            losses_b: its losses, `[b]`.
            scored: its log-probabilities.
            sampled_bC: the sampler's log-probabilities, `[b, C]`.
            logged: values to log by name, `[b, C]` each, zero or false at tokens that do not count.

        Raises:
            ValueError: `logged` has a name that is not in the objective's `logged`.
        """
        drawn_bC = scored.mask if scored.demonstration is None else scored.mask & ~scored.demonstration[:, None]
        gap_bC = (scored.old - sampled_bC).abs().masked_fill(~drawn_bC, 0.0)
        # in float64, because exp(d) - d - 1 loses differences of the size of rounding errors
        k3_bC = k3_kl(sampled_bC.double(), scored.old.double()).masked_fill(~drawn_bC, 0.0)
        values = {**logged, "sampler_logprob_gap": gap_bC, "sampler_gap_k3": k3_bC}
        if unknown := [name for name in values if name not in self.names]:
            raise ValueError(
                f"the objective's terms log {unknown[0]!r}, which is missing from its `logged`: add it there"
            )
        zero = losses_b.new_zeros(())
        sums = [values[name].sum() if name in values else zero for name in self.names]
        figures = [losses_b.sum(), scored.mask.sum(), gap_bC.max(), *sums]
        self._figures.append(torch.stack([figure.double() for figure in figures]))

    def read(self) -> UpdateStats:
        """Return the step's statistics."""
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
