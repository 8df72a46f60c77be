"""Statistics of methods trained with S seeds and evaluated on the same N problems: seeds and problems are crossed.

A method's score with seed s on problem i is modelled as `mu + a_s + b_i + e_si`. The variance of the mean has a part
for each effect, so neither many problems nor many samples compensate for few seeds. It is estimated from mean squares,
as in multi-reader multi-case studies, which have this design (Dorfman, Berbaum and Metz, 1992, Invest. Radiol. 27:723),
and as in the two-way clustered variance of Cameron, Gelbach and Miller (2011, J. Bus. Econ. Stat. 29:238). Its parts
have S - 1 and N - 1 degrees of freedom. The critical value for such a sum is Cochran's (1964, Biometrics 20:191). The
interval is never narrower than the one for the given seeds alone, even if few seeds agree by luck. In simulations with
normal effects, the test rejects 1 to 6 % of true null hypotheses with two seeds and 1 to 5 % with three, most where
seeds differ most. Satterthwaite's degrees of freedom would reject up to 13 and 8 %.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import stdtrit

from lmix.evaluation.statistics.samples import mean_interval

Scores = Sequence[Sequence[float]]
"""`[S, N]`: a row for each seed, with a value for each problem."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and problems, with its 95 % interval."""

    mean: float
    low: float
    high: float
    p: float
    """p value of the two-sided test that the mean is 0."""
    seeds: int
    problems: int

    @property
    def says(self) -> int:
        """1 if the whole interval is above 0, -1 if it is below 0, and 0 if it contains 0."""
        return int(self.low > 0) - int(self.high < 0)


@dataclass(frozen=True)
class Components:
    """Variance components of a mean over seeds and problems."""

    seed: float
    """Variance of the effect of a seed on all problems."""
    problem: float
    """Variance between problems, whatever the seed."""
    interaction: float
    """Variance of the effect of a seed on a single problem; with one seed it is part of `problem`."""
    sample: float
    """Variance of one completion around its problem's rate; the mean of k completions has 1/k of it."""


def crossed_mean(values_SN: Scores) -> Estimate:
    """A method's rate over seeds and problems. With one seed the interval is `mean_interval`'s, for that seed only.

    Args:
        values_SN: scores `[S, N]` in [0, 1].

    Raises:
        ValueError: there is no seed, or fewer than two problems.
    """
    values = checked(values_SN)
    estimate = _estimate(values)
    if len(values) == 1 or estimate.low == estimate.high:
        low, high = mean_interval(values.mean(axis=0).tolist())
        return replace(estimate, low=low, high=high)
    return replace(estimate, low=max(0.0, estimate.low))


def paired_difference(a_SN: Scores, b_SN: Scores) -> Estimate:
    """How much more method a solves than method b, paired by seed and by problem.

    Args:
        a_SN: scores of method a, `[S, N]`.
        b_SN: scores of method b on the same problems. A method with a single run is compared with every seed of the
            other method.

    Raises:
        ValueError: the numbers of problems or seeds do not match.
    """
    a, b = checked(a_SN), checked(b_SN)
    if a.shape[1] != b.shape[1] or (a.shape[0] != b.shape[0] and 1 not in (a.shape[0], b.shape[0])):
        raise ValueError(f"a pair needs the same seeds and problems, not {a.shape} and {b.shape}")
    return _estimate(a - b)


def components(draws_SNk: Any, others_SNk: Any) -> Components:
    """Variance components of the difference of two methods, from 0/1 scores `[S, N, k]` of each.

    One of them may have a single seed, which is then compared with every seed of the other.

    They are the unbiased estimates from mean squares, cut off at 0. With one completion per problem, `sample` can't be
    separated from `interaction`, which then contains both. With one seed, `seed` and `interaction` are 0.
    """
    a, b = np.asarray(draws_SNk, dtype=float), np.asarray(others_SNk, dtype=float)
    samples = min(a.shape[2], b.shape[2])
    sample = float(a.var(axis=2, ddof=1).mean() + b.var(axis=2, ddof=1).mean()) if samples > 1 else 0.0
    difference_SN = a.mean(axis=2) - b.mean(axis=2)
    seeds, problems = difference_SN.shape
    seed_square, problem_square, error = mean_squares(difference_SN)
    within = sample / samples
    if seeds == 1:
        return Components(0.0, max(0.0, problem_square - within), 0.0, sample)
    return Components(
        max(0.0, (seed_square - error) / problems),
        max(0.0, (problem_square - error) / seeds),
        max(0.0, error - within),
        sample,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm-adjusted p values (Holm, 1979).

    Rejecting hypotheses whose adjusted p is at most 5 % keeps the probability of any false rejection at 5 %.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def checked(values_SN: Scores) -> np.ndarray:
    """Scores as an array `[S, N]`. Raises ValueError if there is no seed or fewer than two problems."""
    values = np.asarray(values_SN, dtype=float)
    if values.ndim != 2 or values.shape[0] < 1 or values.shape[1] < 2:
        raise ValueError(f"an estimate needs at least 1 seed and 2 problems, not scores of shape {values.shape}")
    return values


def mean_squares(values_SN: np.ndarray) -> tuple[float, float, float]:
    """Mean squares of seeds, of problems, and of the residual, from scores `[S, N]`.

    With one seed, those of seeds and of the residual are 0.
    """
    seeds, problems = values_SN.shape
    mean = values_SN.mean()
    of_seed, of_problem = values_SN.mean(axis=1), values_SN.mean(axis=0)
    problem_square = seeds * ((of_problem - mean) ** 2).sum() / (problems - 1)
    if seeds == 1:
        return 0.0, float(problem_square), 0.0
    rest = values_SN - of_seed[:, None] - of_problem[None, :] + mean
    error = (rest**2).sum() / ((seeds - 1) * (problems - 1))
    return float(problems * ((of_seed - mean) ** 2).sum() / (seeds - 1)), float(problem_square), float(error)


@dataclass(frozen=True)
class Spread:
    """The variance of a mean over seeds and problems, as numbers or as arrays."""

    of_seeds: Any
    """The part with S - 1 degrees of freedom; 0 with one seed."""
    of_problems: Any
    """The part with N - 1 degrees of freedom."""
    given_seeds: Any
    """The variance of the mean for these seeds alone, without generalising to other seeds."""
    seeds: int
    problems: int

    @classmethod
    def of(cls, seed_square: Any, problem_square: Any, error: Any, seeds: int, problems: int) -> "Spread":
        """Compute the variance from mean squares."""
        given = problem_square / (seeds * problems)
        if seeds == 1:
            return cls(0.0 * given, given, given, seeds, problems)
        beside = np.maximum(problem_square - error, 0.0) / (seeds * problems)
        return cls(seed_square / (seeds * problems), beside, given, seeds, problems)

    def threshold(self, p: float) -> Any:
        """The absolute mean for which the two-sided test gives p."""
        # from the lower tail, where very small p can still be represented
        of_problems = -stdtrit(self.problems - 1, p / 2)
        of_seeds = -stdtrit(self.seeds - 1, p / 2) if self.seeds > 1 else of_problems
        total = np.maximum(self.of_seeds + self.of_problems, np.finfo(float).tiny)
        critical = (self.of_seeds * of_seeds + self.of_problems * of_problems) / total
        return np.maximum(critical * np.sqrt(total), of_problems * np.sqrt(self.given_seeds))

    def p_value(self, mean: float) -> float:
        """p value of the two-sided test that the mean is 0, to a relative error of 1e-9; at least 1e-30."""
        low, high = -30.0, 0.0  # exponents of 10
        while high - low > 1e-10:
            middle = (low + high) / 2
            low, high = (middle, high) if self.threshold(10.0**middle) > abs(mean) else (low, middle)
        return 10.0**high


def _estimate(values: np.ndarray) -> Estimate:
    seeds, problems = values.shape
    mean = float(values.mean())
    spread = Spread.of(*mean_squares(values), seeds, problems)
    if spread.threshold(0.05) <= 1e-12:  # all problems agree: use Wilson's bound on how many could still differ
        unseen = mean_interval([0.0] * problems)[1]
        p = 1.0 if abs(mean) < 1e-12 else 2.0 ** (1 - problems)
        return Estimate(mean, max(-1.0, mean - unseen), min(1.0, mean + unseen), p, seeds, problems)
    half = float(spread.threshold(0.05))
    return Estimate(mean, max(-1.0, mean - half), min(1.0, mean + half), spread.p_value(mean), seeds, problems)
