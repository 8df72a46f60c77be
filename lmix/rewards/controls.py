"""Control rewards that ignore whether an answer is correct ("Spurious Rewards", Shao et al., arXiv 2506.10947).

If a study's gains also appear under these rewards, they are no evidence for its method.
"""

import random
from collections.abc import Sequence

from lmix.rollout.types import Group, Rollout


def format_reward(groups: Sequence[Group]) -> list[list[float]]:
    """1 if the completion ended by itself and filled the task's template, whatever the answer; otherwise 0.

    Returns:
        A reward for each rollout of each group.
    """

    def value(rollout: Rollout) -> float:
        return float(rollout.ended and rollout.judgement is not None and rollout.judgement.format_correct)

    return [[value(rollout) for rollout in group.rollouts] for group in groups]


def random_reward(groups: Sequence[Group]) -> list[list[float]]:
    """1 or 0 with equal probability, whatever the completion.

    A function of seed, step, problem and sample, so that a resumed run gets the same values.

    Returns:
        A reward for each rollout of each group.
    """

    def value(group: Group, rollout: Rollout) -> float:
        draw = (group.draw.seed, group.draw.step) if group.draw else ()
        return float(random.Random(f"random reward {draw} {group.problem.id} {rollout.sample}").random() < 0.5)

    return [[value(group, rollout) for rollout in group.rollouts] for group in groups]
