"""Rewards that say nothing of whether an answer is right. A study whose gains survive them has no case for its method
("Spurious Rewards", Shao et al., arXiv 2506.10947)."""

import random
from collections.abc import Sequence

from lmix.rollout.types import Group, Rollout


def format_reward(groups: Sequence[Group]) -> list[list[float]]:
    """1 exactly when the completion ended by itself with the task's template filled, whatever stands in it."""

    def value(rollout: Rollout) -> float:
        return float(rollout.ended and rollout.judgement is not None and rollout.judgement.format_correct)

    return [[value(rollout) for rollout in group.rollouts] for group in groups]


def random_reward(groups: Sequence[Group]) -> list[list[float]]:
    """1 or 0 with equal chance, whatever the completion: a function of seed, step, problem and sample, so that a
    resumed run draws the same."""

    def value(group: Group, rollout: Rollout) -> float:
        draw = (group.draw.seed, group.draw.step) if group.draw else ()
        return float(random.Random(f"random reward {draw} {group.problem.id} {rollout.sample}").random() < 0.5)

    return [[value(group, rollout) for rollout in group.rollouts] for group in groups]
