"""The rule that moves alpha between steps (eq. 7-9, Algorithm 2)."""

import math
from typing import NamedTuple

from torch import Tensor


class AlphaUpdate(NamedTuple):
    """The new weight of the reference, and the counts that it came from."""

    alpha: float
    forgetting: int
    """s1: problems that the policy alone solves and the mixture does not."""
    gain: int
    """s2: problems that the mixture solves and the policy alone does not."""
    net_gain: int
    """s2 - s1."""


def net_gain_alpha(
    policy_correct: Tensor, mixed_correct: Tensor, offset: float = 25.0, scale: float = 35.0
) -> AlphaUpdate:
    """Alpha from what mixing wins on N validation problems, eq. 7-9: `sigmoid((100 (s2 - s1) / N - offset) / scale)`.

    The paper counts gains and losses on 100 problems. Here they are taken per 100 problems, so that the paper's offset
    and scale hold for a set of any size; with N = 100 this is eq. 9 as printed. An empty set gives
    `sigmoid(-offset / scale)`, as one without a gain or loss does.

    Args:
        policy_correct: `[N]`, bool: the policy alone solved the problem (greedy decoding).
        mixed_correct: `[N]`, bool: the mixture at the current alpha solved it.
        offset: c_o of eq. 9, in problems of 100.
        scale: c_d of eq. 9, in problems of 100; positive.

    Raises:
        ValueError: the two differ in shape, or `scale` is not positive.
    """
    counts = forgetting_and_gain(policy_correct, mixed_correct)
    return alpha_of_counts(*counts, policy_correct.numel(), offset, scale)


def forgetting_and_gain(policy_correct: Tensor, mixed_correct: Tensor) -> tuple[int, int]:
    """The counts of eq. 7 and 8. Arguments as in `net_gain_alpha`.

    Raises:
        ValueError: the two differ in shape.
    """
    if policy_correct.shape != mixed_correct.shape:
        raise ValueError(
            f"policy and mixture must be judged on the same problems, not on {tuple(policy_correct.shape)} "
            f"and {tuple(mixed_correct.shape)}"
        )
    policy_correct, mixed_correct = policy_correct.bool(), mixed_correct.bool()
    forgetting = int((policy_correct & ~mixed_correct).sum())
    gain = int((mixed_correct & ~policy_correct).sum())
    return forgetting, gain


def alpha_of_counts(
    forgetting: int, gain: int, problems: int, offset: float = 25.0, scale: float = 35.0
) -> AlphaUpdate:
    """Eq. 9 from the counts of eq. 7 and 8 and of problems, which several ranks can add up.

    Args:
        forgetting: s1.
        gain: s2.
        problems: N, how many problems the counts are of.
        offset: see `net_gain_alpha`.
        scale: see `net_gain_alpha`.

    Raises:
        ValueError: `scale` is not positive.
    """
    if not scale > 0:
        raise ValueError(f"scale must be positive, not {scale}")
    net_gain = gain - forgetting
    score = (100 * net_gain / max(problems, 1) - offset) / scale
    # the two forms keep exp's argument negative, so that no score overflows
    alpha = 1.0 / (1.0 + math.exp(-score)) if score >= 0 else math.exp(score) / (1.0 + math.exp(score))
    return AlphaUpdate(alpha, forgetting, gain, net_gain)
