"""Rules that update alpha between steps (eq. 7-9, Algorithm 2)."""

import math
from typing import NamedTuple

from torch import Tensor


class AlphaUpdate(NamedTuple):
    """The new weight of the reference, and the counts that it was computed from."""

    alpha: float
    forgetting: int
    """s1: problems that the policy alone solves and the mixture does not."""
    gain: int
    """s2: problems that the mixture solves and the policy alone does not."""
    net_gain: int
    """s2 - s1."""


def forgetting_and_gain(policy_correct: Tensor, mixed_correct: Tensor) -> tuple[int, int]:
    """The counts of eq. 7 and 8 on N validation problems.

    Args:
        policy_correct: `[N]`, bool: the policy alone solved the problem (greedy decoding).
        mixed_correct: `[N]`, bool: the mixture at the current alpha solved it.

    Returns:
        s1, problems that the policy alone solves, and s2, those that the mixture alone solves.

    Raises:
        ValueError: the two differ in shape.
    """
    if policy_correct.shape != mixed_correct.shape:
        raise ValueError(
            f"policy_correct and mixed_correct must have the same shape, not {tuple(policy_correct.shape)} and "
            f"{tuple(mixed_correct.shape)}"
        )
    policy_correct, mixed_correct = policy_correct.bool(), mixed_correct.bool()
    forgetting = int((policy_correct & ~mixed_correct).sum())
    gain = int((mixed_correct & ~policy_correct).sum())
    return forgetting, gain


def accuracy_weighted_alpha(
    correct: tuple[int, int, int],
    problems: int,
    alpha: float,
    temperature: float = 0.25,
    rate: float = 0.5,
    lowest: float = 0.05,
    highest: float = 0.95,
) -> float:
    """The next alpha from the accuracies of the policy alone, the mixture at the current alpha and the reference alone.

    The rule is in the code of the paper's authors and not in the paper. It is described as a softmax of validation
    accuracies that weights policy, mixture and SFT. How three weights become one alpha is our interpretation: each
    weight belongs to the alpha at which its accuracy was measured, which is 0, alpha and 1, so that

        w = softmax(accuracies / temperature)
        target = w_mixture * alpha + w_reference
        next = clip(alpha + rate * (target - alpha), lowest, highest)

    Equal accuracies move alpha towards 1/2.

    Args:
        correct: numbers of problems that the policy, the mixture and the reference solved.
        problems: N, the number of problems; if it is 0, all accuracies are 0.
        alpha: the current alpha.
        temperature: temperature of the softmax over accuracies in [0, 1]; positive.
        rate: fraction of the way from alpha to its target that one update takes, in (0, 1].
        lowest: smallest alpha that the rule returns.
        highest: largest alpha that the rule returns.

    Raises:
        ValueError: a setting is outside its range.
    """
    if not temperature > 0 or not 0 < rate <= 1 or not 0 <= lowest <= highest <= 1:
        raise ValueError(
            "temperature must be positive, rate lie in (0, 1], and 0 <= lowest <= highest <= 1, not "
            f"temperature={temperature}, rate={rate}, lowest={lowest}, highest={highest}"
        )
    accuracies = [count / max(problems, 1) for count in correct]
    best = max(accuracies)
    policy, mixture, reference = (math.exp((accuracy - best) / temperature) for accuracy in accuracies)
    target = (mixture * alpha + reference) / (policy + mixture + reference)
    return min(max(alpha + rate * (target - alpha), lowest), highest)


def alpha_of_counts(
    forgetting: int, gain: int, problems: int, offset: float = 25.0, scale: float = 35.0
) -> AlphaUpdate:
    """Eq. 9, `sigmoid((100 (s2 - s1) / N - offset) / scale)`, from counts, which can be summed over ranks.

    The paper counts gains and losses on 100 problems. Here they are taken per 100 problems, so that the paper's offset
    and scale hold for a set of any size; with N = 100 this is eq. 9 as printed. An empty set gives
    `sigmoid(-offset / scale)`, as does a set without gains or losses.

    Args:
        forgetting: s1.
        gain: s2.
        problems: N, the number of problems in the set.
        offset: c_o of eq. 9, in problems per 100.
        scale: c_d of eq. 9, in problems per 100; positive.

    Raises:
        ValueError: `scale` is not positive.
    """
    if not scale > 0:
        raise ValueError(f"scale must be positive, not {scale}")
    net_gain = gain - forgetting
    score = (100 * net_gain / max(problems, 1) - offset) / scale
    # two equal forms, chosen so that exp never overflows
    alpha = 1.0 / (1.0 + math.exp(-score)) if score >= 0 else math.exp(score) / (1.0 + math.exp(score))
    return AlphaUpdate(alpha, forgetting, gain, net_gain)
