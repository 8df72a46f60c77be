"""The interface of samplers: whatever draws completions from a mixed policy. `engine.py` is lmix's own."""

from collections.abc import Callable, Sequence
from typing import Protocol

from lmix.model.mixed_policy import MixedPolicy
from lmix.model.mixture import Mixture
from lmix.rollout.limits import Limits
from lmix.rollout.types import Draw, Group, Prompt

Progress = Callable[[int, int, int], None]
"""Called while completions are drawn, with (rows that have ended, rows in all, tokens drawn)."""


class SamplerLost(ValueError):
    """What draws completions has ended or does not answer. A run can be resumed from its last checkpoint."""


class Sampler(Protocol):
    """Draws completions. Training, evaluation, the alpha rule and `lmix generate` use nothing else of it."""

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
            prompts: what is completed. A row's random numbers depend on its prompt's `problem.id` and not on what it
                is batched with.
            limits: where completions end.
            draw: sampled or greedy, and from which seed.
            mixture: what is drawn from; a list has one for each of the G samples, so that one call decodes several
                mixtures of the same prompts.
            samples: G.
            keep_frozen: keep the frozen streams' hidden states, so that scoring needs no pass of theirs. A sampler that
                has none leaves `Rollout.frozen_hidden` None.
            progress: see `Progress`.

        Returns:
            A group for each prompt, in order.
        """
        ...

    def sync(self, policy: MixedPolicy) -> None:
        """Take over the policy's weights. Every rank calls it before the first `generate`, and after each update."""
        ...
