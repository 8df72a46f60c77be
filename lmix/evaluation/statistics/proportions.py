"""Proportions of correct answers, and tests of two policies on the same problems with one answer each."""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple


class Contingency(NamedTuple):
    """How often two policies are correct on the same problems: a 2 x 2 table of counts."""

    both: int
    only_a: int
    only_b: int
    neither: int

    @property
    def disagreement(self) -> int:
        """Number of problems that exactly one of the two gets right."""
        return self.only_a + self.only_b


def wilson_interval(successes: float, total: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (1927). It stays within [0, 1], also at rates of 0 and 1.

    Counts need not be integers: with an effective sample size, the interval applies to clustered samples (see
    `mean_interval`).

    Returns:
        The lower and upper end; (0, 1) if `total` is 0.

    Raises:
        ValueError: 0 <= successes <= total does not hold, or the confidence is outside (0, 1).
    """
    if not 0 <= successes <= total:
        raise ValueError(f"successes must lie between 0 and total ({total}), not {successes}")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence}: 0.95 is usual")
    if total == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate, shrink = successes / total, 1 + z * z / total
    centre = (rate + z * z / (2 * total)) / shrink
    half = z / shrink * math.sqrt(rate * (1 - rate) / total + z * z / (4 * total * total))
    # at rates of 0 and 1 the ends are set exactly, without rounding errors
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == total else centre + half)


def contingency(a: Sequence[bool], b: Sequence[bool]) -> Contingency:
    """Count the problems that two policies get right, from `[N]` and `[N]` in the same order.

    Raises:
        ValueError: the two sequences differ in length.
    """
    if len(a) != len(b):
        raise ValueError(f"two policies need the same problems, not {len(a)} and {len(b)} of them")
    both, right_a, right_b = sum(x and y for x, y in zip(a, b, strict=True)), sum(a), sum(b)
    return Contingency(both, right_a - both, right_b - both, len(a) - right_a - right_b + both)


def mcnemar_p(only_a: int, only_b: int) -> float:
    """McNemar's exact two-sided (binomial) test that two policies are correct equally often on the same problems.

    Args:
        only_a: problems that only the first gets right.
        only_b: problems that only the second gets right.

    Returns:
        The p value; 1 if the two never disagree.

    Raises:
        ValueError: a count is negative.
    """
    if only_a < 0 or only_b < 0:
        raise ValueError(f"counts must be at least 0, not {only_a} and {only_b}")
    n = only_a + only_b
    tail = combinations = 1  # integer arithmetic up to the last division, so that large counts do not overflow
    for i in range(min(only_a, only_b)):
        combinations = combinations * (n - i) // (i + 1)
        tail += combinations
    return min(1.0, 2 * tail / 2**n)
