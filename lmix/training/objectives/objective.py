"""What an objective is: from a step's rewards and log-probabilities to the terms and weights of the loss.

Legend: P prompts (groups), G completions of a group, b rows of a micro-batch, C tokens of the longest completion.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class StepTotals:
    """Sizes of one optimiser step over all ranks, which the loss is normalised by."""

    groups: int
    tokens: int
    """Completion tokens that count, those of demonstrations among them."""
    samples: int
    """Completions of a group: G, and a demonstration where the objective adds one."""
    max_new_tokens: int
    """Tokens of a completion at most."""
    step: int = 0
    """Outer steps before this one."""
    demonstration_tokens: int = 0
    """Of `tokens`, those of demonstrations."""

    @property
    def of_samples(self) -> "StepTotals":
        """The same without the demonstrations."""
        return replace(
            self, tokens=self.tokens - self.demonstration_tokens, samples=self.samples - 1, demonstration_tokens=0
        )

    @property
    def completions(self) -> int:
        """Of all groups; at least 1."""
        return max(self.samples * self.groups, 1)


class Scored(NamedTuple):
    """A micro-batch of completions with their log-probabilities, all `[b, C]` but the advantages."""

    log_probs: Tensor
    """Under what is optimised (the mixed policy), with gradient."""
    old: Tensor
    """Under what they were drawn from, before the step's first update: theta_old of eq. 5."""
    advantages: Tensor
    """`[b]`."""
    mask: Tensor
    """Bool: the tokens that count. Others may hold anything, and must not reach the result."""
    reference: Tensor | None = None
    """Under the reference alone, where `Objective.needs_reference`."""
    demonstration: Tensor | None = None
    """`[b]`, bool: rows that are demonstrations and were not sampled, where `Objective.adds_demonstration`."""
    divergence: Tensor | None = None
    """Of what is optimised from the teacher, with gradient, where `Objective.needs_teacher`; the log-probabilities have
    none then."""


class Objective:
    """How a step's groups become a gradient. A subclass gives `advantages`, `terms` and `token_weights`.

    The loss is `-sum_{i, t} token_weights_i * terms_{i, t}` over all completions of an optimiser step and all ranks.

    Args:
        inner_updates: mu, passes over a step's rollouts.
        mini_batches: optimiser steps of one pass, each on its share of the groups, in order. All old log-probabilities
            are taken before the first. `trainer.max_steps`, schedules and checkpoints count outer steps.
        micro_batch_tokens: padded tokens of one forward and backward pass; changes memory and speed, not the gradient.
        sampler_weight_cap: multiply each token's term by min(p_old / p_sampler, cap), a truncated importance weight,
            for a sampler that rounds differently from the trainer (train/sampler_gap_k3 says how much); null: no
            weights.
        entropy_bonus: add so many times the entropy of each token's distribution to the terms; above 0, dead groups
            are scored as well.

    Raises:
        ValueError: a number outside its range.
    """

    needs_reference = False
    """Whether `terms` wants the log-probabilities under the reference alone, for a KL of the policy to it: then alpha
    must be 0, and dead groups are scored as well."""

    adds_demonstration = False
    """Whether each group gets the problem's demonstration as one more completion, the last one."""

    optimises_policy = False
    """Whether the policy alone is optimised on completions that the mixture drew."""

    needs_teacher = False
    """Whether `terms` wants the divergence from a teacher, which only modules that have one compute."""

    logged: tuple[str, ...] = ()
    """Names of what `terms` gives to be logged; the same on all ranks, also on one that scores nothing in a step."""

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
                "null leaves the weights out"
            )
        if not 0 <= entropy_bonus < math.inf:
            raise ValueError(f"objective.entropy_bonus must be at least 0, not {entropy_bonus}")
        self.inner_updates, self.mini_batches = inner_updates, mini_batches
        self.micro_batch_tokens = micro_batch_tokens
        self.sampler_weight_cap, self.entropy_bonus = sampler_weight_cap, entropy_bonus

    @property
    def scores_dead_groups(self) -> bool:
        """Whether a completion of advantage 0 has a gradient too."""
        return self.needs_reference or self.entropy_bonus > 0

    def advantages(self, rewards_PG: Tensor) -> Tensor:
        """What each completion is worth beside the others of its group, `[P, G]` -> `[P, G]`.

        A completion of advantage exactly 0 has no gradient and is not scored, unless `scores_dead_groups`.
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
        """What each token of a completion weighs in the loss; see `normalisers`.

        Args:
            tokens_PG: `[P, G]`, counted tokens of each of this rank's completions.
            totals: of all ranks.

        Returns:
            `[P, G]`, float32.
        """
        raise NotImplementedError
