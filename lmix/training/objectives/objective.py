"""What an objective is: from a step's rewards and log-probabilities to the terms and weights of the loss.

Legend: P prompts (groups), G samples of a prompt, b rows of a micro-batch, C tokens of the longest completion.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class StepTotals:
    """Sizes of a step over all ranks, which the loss is normalised by."""

    groups: int
    tokens: int
    """Completion tokens that count."""
    samples: int
    """G."""
    max_new_tokens: int
    """Tokens of a completion at most."""


class Scored(NamedTuple):
    """A micro-batch of completions with their log-probabilities, all `[b, C]` but the advantages."""

    log_probs: Tensor
    """Under the mixed policy, with gradient."""
    old: Tensor
    """The same before the first inner update: theta_old of eq. 5."""
    advantages: Tensor
    """`[b]`."""
    mask: Tensor
    """Bool: the tokens that count. Others may hold anything, and must not reach the result."""
    reference: Tensor | None
    """Under the reference alone, where `Objective.needs_reference`."""


class Objective:
    """How a step's groups become a gradient. A subclass gives `advantages`, `terms` and `token_weights`.

    The loss is `-sum_{i, t} token_weights_i * terms_{i, t}` over all completions of the step and all ranks.

    Args:
        inner_updates: mu, optimiser steps on the same rollouts.
        micro_batch_tokens: padded tokens of one forward and backward pass; changes memory and speed, not the gradient.
        sampler_weight_cap: multiply each token's term by min(p_old / p_sampler, cap), a truncated importance weight,
            for a sampler that rounds differently from the trainer (train/sampler_gap_k3 says how much); null: no
            weights.

    Raises:
        ValueError: a number outside its range.
    """

    needs_reference = False
    """Whether `terms` wants the log-probabilities under the reference alone, for a KL of the policy to it: then alpha
    must be 0, and dead groups are scored as well."""

    logged: tuple[str, ...] = ()
    """Names of what `terms` gives to be logged; the same on all ranks, also on one that scores nothing in a step."""

    def __init__(
        self, inner_updates: int = 1, micro_batch_tokens: int = 8192, sampler_weight_cap: float | None = None
    ) -> None:
        for name, value in (("inner_updates", inner_updates), ("micro_batch_tokens", micro_batch_tokens)):
            if value < 1:
                raise ValueError(f"objective.{name} must be at least 1, not {value}")
        if sampler_weight_cap is not None and not 0 < sampler_weight_cap < math.inf:
            raise ValueError(
                f"objective.sampler_weight_cap must be positive and finite, not {sampler_weight_cap}: 2 is usual, "
                "null leaves the weights out"
            )
        self.inner_updates, self.micro_batch_tokens = inner_updates, micro_batch_tokens
        self.sampler_weight_cap = sampler_weight_cap

    def advantages(self, rewards_PG: Tensor) -> Tensor:
        """What each completion is worth beside the others of its group, `[P, G]` -> `[P, G]`.

        A completion of advantage exactly 0 has no gradient and is not scored.
        """
        raise NotImplementedError

    def terms(self, scored: Scored) -> tuple[Tensor, dict[str, Tensor]]:
        """What is maximised, a token at a time.

        Returns:
            `[b, C]`, zero where the mask is false; and what is logged as means over the counted tokens, by the names of
            `logged`: `[b, C]` each, without gradient.
        """
        raise NotImplementedError

    def token_weights(self, tokens_PG: Tensor, totals: StepTotals) -> Tensor:
        """What each token of a completion weighs in the loss.

        Args:
            tokens_PG: `[P, G]`, counted tokens of each of this rank's completions.
            totals: of all ranks.

        Returns:
            `[P, G]`, float32.
        """
        raise NotImplementedError
