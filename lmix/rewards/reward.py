"""What a reward is, and the verifier's."""

from collections.abc import Sequence
from typing import Protocol

from lmix.rollout.types import Group


class Reward(Protocol):
    """A callable on judged groups. These have all there is to know: the problem with its gold answer, and each
    completion's text, token ids, whether it ended or was truncated, and its judgement."""

    def __call__(self, groups: Sequence[Group]) -> Sequence[Sequence[float]]:
        """A number for each rollout of each group, finite."""
        ...


def verifier_reward(groups: Sequence[Group]) -> list[list[float]]:
    """1 exactly when the completion ended by itself and carries the right answer in the task's template; or else 0."""
    return [[float(rollout.solved) for rollout in group.rollouts] for group in groups]
