"""Inputs and outputs of sampling: prompts, and groups of rollouts."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from lmix.rollout.limits import Limits
from lmix.tasks.task import Judgement, Problem

Who = Literal["mixed", "policy", "reference"]
"""The mixture, or one of its streams alone."""


@dataclass(frozen=True)
class Draw:
    """How tokens are chosen: sampled from the mixed policy at temperature 1, or the most probable token."""

    seed: int = 0
    step: int = 0
    """Outer step; the same seed and step give the same tokens."""
    greedy: bool = False


@dataclass(frozen=True)
class Prompt:
    """A problem as token ids."""

    problem: Problem
    ids: list[int]
    """Token ids; not empty."""


@dataclass
class Rollout:
    """One completion of one prompt. Tensors are on the CPU; T tokens."""

    prompt: Prompt
    sample: int
    """Index among the prompt's G samples."""
    completion_ids: list[int] = field(default_factory=list)
    """Sampled tokens, including the one that ended the completion, if it was not truncated."""
    log_probs: Tensor = field(default_factory=lambda: torch.empty(0))
    """`[T]`, of the sampled tokens under the mixed policy, as the sampler computed them."""
    ended: bool = False
    """Whether an end-of-sequence token, or a token that completes a stop string, was sampled within the limit;
    otherwise the completion is truncated."""
    frozen_hidden: dict[str, Tensor] | None = None
    """`[T, H]` of each frozen stream of the mixture: the hidden states that predicted each token, if they were kept."""
    is_demonstration: bool = False
    """Whether it is the problem's worked solution and was not sampled."""
    mask: Tensor | None = None
    """`[T]`, bool: the tokens that count in the loss; None counts all."""
    limits: Limits | None = None
    """Limits that it was drawn with: scoring excludes tokens that could not be drawn. None excludes none."""
    text: str = ""
    """The decoded completion without its end-of-sequence token. A stop string is kept, with any text that its token has
    after it."""
    judgement: Judgement | None = None
    """Format and correctness, once judged."""
    rewards: dict[str, float] = field(default_factory=dict)
    """The value of each configured reward by name, before weighting."""
    reward: float = 0.0
    """Their weighted sum: R of eq. 4."""

    @property
    def solved(self) -> bool:
        """Whether it ended by itself with the right answer in the template."""
        return self.ended and self.judgement is not None and self.judgement.answer_correct

    def __len__(self) -> int:
        """Tokens of prompt and completion."""
        return len(self.prompt.ids) + len(self.completion_ids)


@dataclass
class Group:
    """A prompt and its G rollouts."""

    prompt: Prompt
    rollouts: list[Rollout]
    draw: Draw | None = None
    """How the rollouts were drawn."""
    who: Who = "mixed"
    """What they were drawn from: the run's mixture, or one of its streams alone."""
    held_out: bool = False
    """Whether an evaluation drew them, and not a training step."""

    @property
    def problem(self) -> Problem:
        return self.prompt.problem

    @property
    def rewards(self) -> list[float]:
        """R of eq. 4, one a rollout."""
        return [rollout.reward for rollout in self.rollouts]


def flatten(groups: Sequence[Group]) -> list[Rollout]:
    """All rollouts, group after group."""
    return [rollout for group in groups for rollout in group.rollouts]


def release_hidden(groups: Sequence[Group]) -> None:
    """Free the frozen hidden states: they are large, and nothing needs them after the update."""
    for rollout in flatten(groups):
        rollout.frozen_hidden = None
