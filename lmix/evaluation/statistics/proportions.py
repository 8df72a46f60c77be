"""Proportions of right answers, and two policies on the same problems with one answer each."""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple


class Contingency(NamedTuple):
    """How often two policies are right on the same problems: a 2 x 2 table as counts, which sum to their number."""

    both: int
    only_a: int
    only_b: int
    neither: int

    @property
    def disagreement(self) -> int:
        """Problems that exactly one of the two gets right."""
        return self.only_a + self.only_b


def wilson_interval(successes: float, total: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (1927); it stays inside [0, 1], at rates of 0 and 1 too.

    Counts need not be whole: an effective number of draws makes it a clustered sample's (see `mean_interval`).

    Returns:
        Its lower and upper end; (0, 1), so no knowledge, where `total` is 0.

    Raises:
        ValueError: not 0 <= successes <= total, or a confidence outside (0, 1).
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
    # the ends are exact at rates of 0 and 1, where rounding would put them beside it
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == total else centre + half)


def contingency(a: Sequence[bool], b: Sequence[bool]) -> Contingency:
    """Count on which problems two policies are right: `[N]` and `[N]`, problem by problem.

    Raises:
        ValueError: the two differ in length.
    """
    if len(a) != len(b):
        raise ValueError(f"two policies need the same problems, not {len(a)} and {len(b)}")
    both, right_a, right_b = sum(x and y for x, y in zip(a, b, strict=True)), sum(a), sum(b)
    return Contingency(both, right_a - both, right_b - both, len(a) - right_a - right_b + both)


def mcnemar_p(only_a: int, only_b: int) -> float:
    """McNemar's exact two-sided test (binomial) of two policies being right equally often, on the same problems.

    Args:
        only_a: problems that only the first gets right.
        only_b: problems that only the second gets right.

    Returns:
        p; 1 where the two never disagree.

    Raises:
        ValueError: a negative count.
    """
    if only_a < 0 or only_b < 0:
        raise ValueError(f"counts must be at least 0, not {only_a} and {only_b}")
    n = only_a + only_b
    tail = combinations = 1  # in whole numbers up to the last division, so no count is too large
    for i in range(min(only_a, only_b)):
        combinations = combinations * (n - i) // (i + 1)
        tail += combinations
    return min(1.0, 2 * tail / 2**n)
