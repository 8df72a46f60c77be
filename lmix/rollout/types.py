"""What sampling takes and gives: prompts, and groups of rollouts."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from lmix.rollout.limits import Limits
from lmix.tasks.task import Judgement, Problem

Who = Literal["mixed", "policy", "reference"]
"""A mixture, or the one stream that is alone in it."""


@dataclass(frozen=True)
class Draw:
    """How tokens are chosen: sampled from the mixed policy at temperature 1, or the most probable token."""

    seed: int = 0
    step: int = 0
    """Outer step; the same seed and step give the same tokens."""
    greedy: bool = False


@dataclass(frozen=True)
class Prompt:
    """A problem as the model reads it."""

    problem: Problem
    ids: list[int]
    """Token ids; not empty."""


@dataclass
class Rollout:
    """One completion of one prompt. Tensors are on the CPU; T tokens."""

    prompt: Prompt
    sample: int
    """Which of the prompt's G samples."""
    completion_ids: list[int] = field(default_factory=list)
    """Sampled tokens, with the one that ended the completion where it ended by itself."""
    log_probs: Tensor = field(default_factory=lambda: torch.empty(0))
    """`[T]`, of the sampled tokens under the mixed policy, as the sampler computed them."""
    ended: bool = False
    """Whether an end-of-sequence token was sampled within the limit, or a token that completed a stop string; otherwise
    the completion is truncated."""
    frozen_hidden: dict[str, Tensor] | None = None
    """`[T, H]` of each of the mixture's frozen streams: hidden states that predicted each token, if they were kept."""
    is_demonstration: bool = False
    """Whether it was not sampled: the problem's worked solution."""
    mask: Tensor | None = None
    """`[T]`, bool: the tokens that count in the loss; None counts all."""
    limits: Limits | None = None
    """What it was drawn within: scoring leaves out the tokens that could not be drawn. None leaves out none."""
    text: str = ""
    """The completion without its end-of-sequence token, decoded. A stop string stays, as does what its token has after
    it."""
    judgement: Judgement | None = None
    """Format and correctness, once judged."""
    rewards: dict[str, float] = field(default_factory=dict)
    """Each configured reward by name, before it is weighted."""
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
    """What the rollouts were drawn by."""
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
