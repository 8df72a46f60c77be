"""The base class of objectives, which turn rewards and log-probabilities into the terms and weights of the loss.

Legend: P prompts (groups), G completions of a group, b rows of a micro-batch, C tokens of the longest completion.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class StepTotals:
    """Sizes of one optimiser step over all ranks, for normalising the loss."""

    groups: int
    tokens: int
    """Completion tokens that count, including those of demonstrations."""
    samples: int
    """Completions per group: G, plus one if the objective adds a demonstration."""
    max_new_tokens: int
    """Length limit of a completion, in tokens."""
    step: int = 0
    """Index of the outer step, from 0."""
    demonstration_tokens: int = 0
    """Demonstration tokens among `tokens`."""

    @property
    def of_samples(self) -> "StepTotals":
        """The totals without the demonstrations."""
        return replace(
            self, tokens=self.tokens - self.demonstration_tokens, samples=self.samples - 1, demonstration_tokens=0
        )

    @property
    def completions(self) -> int:
        """Completions of all groups; at least 1."""
        return max(self.samples * self.groups, 1)


class Scored(NamedTuple):
    """A micro-batch of completions with their log-probabilities. Tensors are `[b, C]` unless stated otherwise."""

    log_probs: Tensor
    """Log-probabilities under the distribution being optimised (the mixed policy), with gradient."""
    old: Tensor
    """Log-probabilities under the sampling distribution before the step's first update: theta_old of eq. 5."""
    advantages: Tensor
    """`[b]`."""
    mask: Tensor
    """Bool: the tokens that count. Values at other tokens are arbitrary and must not affect the result."""
    reference: Tensor | None = None
    """Log-probabilities under the reference alone; given if `Objective.needs_reference`."""
    demonstration: Tensor | None = None
    """`[b]`, bool: rows that are demonstrations instead of samples; given if `Objective.adds_demonstration`."""
    divergence: Tensor | None = None
    """Divergence from the teacher, with gradient; given if `Objective.needs_teacher`. `log_probs` then have no
    gradient."""


class Objective:
    """The loss over a step's groups. Subclasses implement `advantages`, `terms` and `token_weights`.

    The loss is `-sum_{i, t} token_weights_i * terms_{i, t}` over all completions of an optimiser step and all ranks.

    Args:
        inner_updates: mu, the number of passes over a step's rollouts.
        mini_batches: optimiser steps per pass, each on a share of the groups, in order. All old log-probabilities are
            computed before the first. `trainer.max_steps`, schedules and checkpoints count outer steps.
        micro_batch_tokens: padded tokens of one forward and backward pass. It affects memory and speed, not the
            gradient.
        sampler_weight_cap: multiply each token's term by min(p_old / p_sampler, cap), a truncated importance weight.
            It corrects for a sampler that rounds differently from the trainer; train/sampler_gap_k3 measures the
            difference. null uses no weights.
        entropy_bonus: coefficient of the entropy of each token's distribution, added to the terms. Above 0, dead
            groups are scored as well.

    Raises:
        ValueError: a number is out of range.
    """

    needs_reference = False
    """Whether `terms` needs the log-probabilities under the reference alone, for a KL of the policy to it. alpha must
    then be 0, and dead groups are scored as well."""

    adds_demonstration = False
    """Whether each group gets the problem's demonstration as an additional, last completion."""

    optimises_policy = False
    """Whether the policy alone is optimised, on completions sampled from the mixture."""

    needs_teacher = False
    """Whether `terms` needs the divergence from a teacher. Only modules with a teacher compute it."""

    logged: tuple[str, ...] = ()
    """Names of the values that `terms` logs. They are declared here so that all ranks have the same names, even a rank
    that scores nothing in a step."""

    def __init__(
        self,
        inner_updates: int = 1,
        mini_batches: int = 1,
        micro_batch_tokens: int = 8192,
        sampler_weight_cap: float | None = None,
        entropy_bonus: float = 0.0,
    ) -> None:
        counts = {
            "inner_updates": inner_updates,
            "mini_batches": mini_batches,
            "micro_batch_tokens": micro_batch_tokens,
        }
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"objective.{name} must be at least 1, not {value}")
        if sampler_weight_cap is not None and not 0 < sampler_weight_cap < math.inf:
            raise ValueError(
                f"objective.sampler_weight_cap must be positive and finite, not {sampler_weight_cap}: 2 is usual, "
                "null turns the weights off"
            )
        if not 0 <= entropy_bonus < math.inf:
            raise ValueError(f"objective.entropy_bonus must be at least 0, not {entropy_bonus}")
        self.inner_updates, self.mini_batches = inner_updates, mini_batches
        self.micro_batch_tokens = micro_batch_tokens
        self.sampler_weight_cap, self.entropy_bonus = sampler_weight_cap, entropy_bonus

    @property
    def scores_dead_groups(self) -> bool:
        """Whether completions with advantage 0 have a gradient as well."""
        return self.needs_reference or self.entropy_bonus > 0

    def advantages(self, rewards_PG: Tensor) -> Tensor:
        """Compute advantages `[P, G]` from rewards `[P, G]`.

        A completion whose advantage is exactly 0 has no gradient and is not scored, unless `scores_dead_groups`.
        """
        raise NotImplementedError

    def terms(self, scored: Scored) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the term of each token, which is maximised.

        Returns:
            The terms, `[b, C]`, zero where the mask is false; and the values to log as means over the counted tokens,
            by the names in `logged`, `[b, C]` each, without gradient.
        """
        raise NotImplementedError

    def token_weights(self, tokens_PG: Tensor, totals: StepTotals) -> Tensor:
        """The weight in the loss of each token of a completion; see `normalisers`.

        Args:
            tokens_PG: `[P, G]`, counted tokens of each of this rank's completions.
            totals: sizes of the optimiser step over all ranks.

        Returns:
            `[P, G]`, float32.
        """
        raise NotImplementedError
