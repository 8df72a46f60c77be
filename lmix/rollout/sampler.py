"""The interface of samplers, which draw completions from a mixed policy. lmix's own sampler is in `engine.py`."""

from collections.abc import Callable, Sequence
from typing import Protocol

from lmix.model.mixed_policy import MixedPolicy
from lmix.model.mixture import Mixture
from lmix.rollout.limits import Limits
from lmix.rollout.types import Draw, Group, Prompt

Progress = Callable[[int, int, int], None]
"""Called while completions are drawn, with (rows that have ended, rows in all, tokens drawn)."""


class SamplerLost(ValueError):
    """The sampler has ended or does not answer. A run can be resumed from its last checkpoint."""


class Sampler(Protocol):
    """Draws completions. Training, evaluation, the alpha rule and `lmix generate` use only these two methods."""

    def generate(
        self,
        prompts: Sequence[Prompt],
        limits: Limits,
        draw: Draw,
        mixture: Mixture | Sequence[Mixture],
        samples: int = 1,
        keep_frozen: bool = False,
        progress: Progress | None = None,
    ) -> list[Group]:
        """Complete each prompt `samples` times.

        Args:
            prompts: the prompts to complete. A row's random numbers depend on its prompt's `problem.id` and not on
                the other rows of its batch.
            limits: where completions end.
            draw: sampled or greedy, and from which seed.
            mixture: the distribution to draw from. A list has one for each of the G samples, so that one call can
                decode several mixtures of the same prompts.
            samples: G.
            keep_frozen: keep the frozen streams' hidden states, so that scoring needs no pass of these streams. A
                sampler that can't do this leaves `Rollout.frozen_hidden` None.
            progress: see `Progress`.

        Returns:
            A group for each prompt, in order.
        """
        ...

    def sync(self, policy: MixedPolicy) -> None:
        """Load the policy's current weights. Every rank calls it before the first `generate`, and after each update."""
        ...
