"""A weighted sum of rewards by name: lmix's own rewards, or the user's functions and classes."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from lmix.rewards.controls import format_reward, random_reward
from lmix.rewards.overlong import OverlongPenalty
from lmix.rewards.reward import Reward, verifier_reward
from lmix.rollout.types import Group, Rollout
from lmix.tasks.task import Problem

BUILT_IN: dict[str, Callable[[int], Reward]] = {
    "verifier": lambda max_new_tokens: verifier_reward,
    "overlong": OverlongPenalty,
    "format": lambda max_new_tokens: format_reward,
    "random": lambda max_new_tokens: random_reward,
}
"""lmix's own rewards, as functions of the length limit."""


class RewardSum:
    """The weighted sum of rewards: R of eq. 4.

    Args:
        weights: weight by name. A name is `verifier`, `overlong`, one of the controls `format` (1 for a filled
            template, whatever the answer) and `random`, or an import path (`mine.brevity`). The path refers to a
            function `reward(problem, completion) -> float` of a `Problem` and a completion's text, to a `Reward` (one
            parameter: judged groups), or to a `Reward` class, which is constructed without arguments.
        max_new_tokens: the length limit (`sampling.max_new_tokens`), for `overlong`.

    Raises:
        ValueError: there is no reward, a weight is not finite, or a name can't be imported.
    """

    def __init__(self, weights: Mapping[str, float], max_new_tokens: int = 512) -> None:
        if not weights:
            raise ValueError("model.rewards is empty: give a weight for at least one, such as {verifier: 1}")
        for name, weight in weights.items():
            if not math.isfinite(weight):
                raise ValueError(f"model.rewards: the weight of {name} must be finite, not {weight}")
        self.weights = dict(weights)
        self.rewards = {
            name: BUILT_IN[name](max_new_tokens) if name in BUILT_IN else imported_reward(name) for name in weights
        }

    def __call__(self, groups: Sequence[Group]) -> None:
        """Set `Rollout.rewards` and `Rollout.reward` of judged groups.

        Raises:
            ValueError: a reward does not return one finite number for each rollout.
        """
        for name, reward in self.rewards.items():
            values = numbers_of(name, reward, groups)
            for group, of_group in zip(groups, values, strict=True):
                for rollout, value in zip(group.rollouts, of_group, strict=True):
                    if not math.isfinite(value):
                        raise ValueError(f"reward {name} is {value} on problem {group.problem.id}: it must be finite")
                    rollout.rewards[name] = value
        for group in groups:
            for rollout in group.rollouts:
                rollout.reward = sum(weight * rollout.rewards[name] for name, weight in self.weights.items())

    def means(self, rollouts: Sequence[Rollout]) -> dict[str, tuple[float, float]]:
        """The metric of each reward as (sum, count), if there are several rewards."""
        if len(self.rewards) == 1:
            return {}
        return {f"reward/{name}": (sum(r.rewards[name] for r in rollouts), len(rollouts)) for name in self.rewards}


def numbers_of(name: str, reward: Reward, groups: Sequence[Group]) -> list[list[float]]:
    """The values of a reward as floats. Raises ValueError unless there is one number for each rollout of each group."""
    try:
        values = [[float(value) for value in of_group] for of_group in reward(groups)]
    except TypeError as error:
        raise ValueError(f"reward {name} must return numbers, a list for each group: {error}") from error
    if [len(of_group) for of_group in values] != [len(group.rollouts) for group in groups]:
        raise ValueError(f"reward {name} must return one number for each rollout of each group")
    return values


def imported_reward(path: str) -> Reward:
    """The reward at an import path, see `RewardSum`. Raises ValueError if there is none."""
    module, _, name = path.rpartition(".")
    try:
        reward: Any = getattr(import_module(module), name) if module else None
        if inspect.isclass(reward):
            reward = reward()
    except (ImportError, AttributeError, TypeError) as error:
        raise ValueError(f"model.rewards: {path} can't be imported: {error}") from error
    parameters = len(inspect.signature(reward).parameters) if callable(reward) else 0
    if parameters == 1:
        return reward  # pyright: ignore[reportReturnType]
    if parameters == 2:
        return by_completion(reward)  # pyright: ignore[reportArgumentType]
    raise ValueError(
        f"model.rewards: {path} is not a reward: use one of {', '.join(BUILT_IN)}, or the import path of a function of "
        "(problem, completion) or of (groups)"
    )


def by_completion(function: Callable[[Problem, str], float]) -> Reward:
    """Make a `Reward` from a function of a problem and a completion's text."""

    def reward(groups: Sequence[Group]) -> list[list[float]]:
        return [[function(group.problem, r.text) for r in group.rollouts] for group in groups]

    return reward
