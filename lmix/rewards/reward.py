"""The protocol of rewards, and the verifier's reward."""

from collections.abc import Sequence
from typing import Protocol

from lmix.rollout.types import Group


class Reward(Protocol):
    """A callable on judged groups.

    A group has the problem with its gold answer, and for each completion its text, its token ids, whether it ended or
    was truncated, and its judgement.
    """

    def __call__(self, groups: Sequence[Group]) -> Sequence[Sequence[float]]:
        """Return a finite number for each rollout of each group."""
        ...


def verifier_reward(groups: Sequence[Group]) -> list[list[float]]:
    """1 if the completion ended by itself with the correct answer in the task's template, otherwise 0.

    Returns:
        A reward for each rollout of each group.
    """
    return [[float(rollout.solved) for rollout in group.rollouts] for group in groups]
