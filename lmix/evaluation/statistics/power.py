"""Power of a study with S seeds, N problems and k samples, and the sizes needed to detect a difference.

The test is that of `paired_difference` at 5 %. The mean squares (chi-squared) and the mean (normal) are simulated from
their distributions, and the test is applied to each draw, so the degrees of freedom are not approximated.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from scipy.special import gammaincinv

from lmix.evaluation.statistics.crossed import Components, Spread

DRAWS, SEED = 40_000, 0
"""Size and seed of the simulation. Its standard error is at most 0.25 points. All calls use the same draws, so that
results are monotone."""
MOST_PROBLEMS, MOST_SEEDS = 1_000_000, 1000


def assumed_components(rate: float, difference: float, spread: float, agreement: float, seed_sd: float) -> Components:
    """Variance components of the difference of two methods, from assumptions about them.

    Args:
        rate: solve rate of the weaker method.
        difference: how much higher the solve rate of the other method is.
        spread: correlation of two completions of one problem by one model: `Var(p_i) / (p (1 - p))`.
        agreement: correlation of the two methods' `p_i`.
        seed_sd: standard deviation of a method's rate over seeds.

    Raises:
        ValueError: a value is out of range.
    """
    if not 0 < rate < 1 or not rate + difference < 1:
        raise ValueError(f"rate must lie between 0 and 1, also with the difference added: not {rate} and {difference}")
    for name, share in (("spread", spread), ("agreement", agreement)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} must lie between 0 and 1, not {share}")
    if seed_sd < 0:
        raise ValueError(f"seed_sd must be at least 0, not {seed_sd}")
    bernoulli = sum(p * (1.0 - p) for p in (rate, rate + difference))
    problem = spread * bernoulli * (1.0 - agreement)
    return Components(2.0 * seed_sd**2, problem, 0.0, (1.0 - spread) * bernoulli)


def power(difference: float, parts: Components, problems: int, samples: int, seeds: int) -> float:
    """Probability that the test detects a true difference.

    Args:
        difference: the true difference as a fraction: 0.05 is 5 points.
        parts: variance components of the difference. With one seed the variance over seeds can't be estimated and is
            left out; the result then holds for the two trained models, not for the methods.
        problems: N, the number of problems, at least 2.
        samples: k, the number of completions per problem.
        seeds: S, the number of seeds.
    """
    noise, threshold = _draws(parts, problems, samples, seeds)
    return float((np.abs(difference + noise) >= threshold).mean())


@lru_cache(maxsize=8)
def _draws(parts: Components, problems: int, samples: int, seeds: int) -> tuple[np.ndarray, np.ndarray]:
    """For each simulated study, the error of its mean and the smallest absolute mean that the test rejects."""
    chance = np.random.default_rng(SEED)
    normal, uniforms = chance.standard_normal(DRAWS), chance.random((3, DRAWS))
    error = parts.interaction + parts.sample / samples
    of_seed = error + problems * parts.seed if seeds > 1 else 0.0
    of_problem = error + seeds * parts.problem
    freedom = seeds - 1, problems - 1, (seeds - 1) * (problems - 1)
    expected = of_seed, of_problem, error if seeds > 1 else 0.0
    squares = [e * mean_square(d, u) if e else 0.0 * u for e, d, u in zip(expected, freedom, uniforms, strict=True)]
    variance = (max(of_seed, error) + seeds * parts.problem) / (seeds * problems)  # with one seed, `error` alone
    seed_square, problem_square, error_square = squares
    spread = Spread.of(seed_square, problem_square, error_square, seeds, problems)
    return normal * np.sqrt(variance), spread.threshold(0.05)


def mean_square(freedom: int, uniforms: np.ndarray) -> np.ndarray:
    """Draws of a chi-squared variable divided by its degrees of freedom, by inverse CDF."""
    return 2.0 * gammaincinv(freedom / 2, uniforms) / freedom


def detectable_difference(
    parts: Components, problems: int, samples: int, seeds: int, wanted: float = 0.8
) -> float | None:
    """The smallest true difference detected with probability `wanted`; None if even 1 (100 points) is not."""
    if power(1.0, parts, problems, samples, seeds) < wanted:
        return None
    low, high = 0.0, 1.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle, parts, problems, samples, seeds) >= wanted else (middle, high)
    return high


def problems_needed(difference: float, parts: Components, samples: int, seeds: int, wanted: float = 0.8) -> int | None:
    """The fewest problems that detect a difference with probability `wanted`; None if no number does.

    This happens if seeds differ too much.
    """
    return _fewest(lambda n: power(difference, parts, n, samples, seeds) >= wanted, 2, MOST_PROBLEMS)


def seeds_needed(difference: float, parts: Components, problems: int, samples: int, wanted: float = 0.8) -> int | None:
    """The fewest seeds, at least two, that detect a difference with probability `wanted`; None if no number does.

    This happens if there are too few problems.
    """
    return _fewest(lambda s: power(difference, parts, problems, samples, s) >= wanted, 2, MOST_SEEDS)


def _fewest(suffices: Callable[[int], bool], low: int, most: int) -> int | None:
    """The smallest sufficient number from `low` on, to within 1 %; None if `most` does not suffice."""
    if suffices(low):
        return low
    if not suffices(most):
        return None
    high = low
    while not suffices(high):
        low, high = high, min(2 * high, most)
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle) else (middle, high)
    return high
