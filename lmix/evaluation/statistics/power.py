"""How likely a study of S seeds, N problems and k samples sees a difference, and what it needs to see one.

The test is `paired_difference`'s at 5 %. Mean squares are drawn by their distributions (chi-squared) beside the mean
(normal), and the test is applied to each draw: no approximation of its degrees of freedom enters.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from scipy.special import gammaincinv

from lmix.evaluation.statistics.crossed import Components, Spread

DRAWS, SEED = 40_000, 0
"""Of the simulation, whose error is then 0.25 points at most; the same draws for every question, so that answers are
monotone."""
MOST_PROBLEMS, MOST_SEEDS = 1_000_000, 1000


def assumed_components(rate: float, difference: float, spread: float, agreement: float, seed_sd: float) -> Components:
    """Variances of the difference of two methods from what is assumed of them.

    Args:
        rate: what the weaker one solves.
        difference: how much more the other one solves.
        spread: correlation of two completions of one problem, by one model: `Var(p_i) / (p (1 - p))`.
        agreement: correlation of the two methods' `p_i`.
        seed_sd: standard deviation of a method's rate over seeds.

    Raises:
        ValueError: one outside its range.
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
    """Probability that the test finds a true difference.

    Args:
        difference: as a share: 0.05 is 5 points.
        parts: variances of the difference. With one seed those of seeds can't be seen, and are left out: the answer
            is for these two trained models, not for the methods.
        problems: N, at least 2.
        samples: k, completions of each problem.
        seeds: S.
    """
    noise, threshold = _draws(parts, problems, samples, seeds)
    return float((np.abs(difference + noise) >= threshold).mean())


@lru_cache(maxsize=8)
def _draws(parts: Components, problems: int, samples: int, seeds: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each simulated study: how far its mean is from the true difference, and how far from 0 it must be."""
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
    """Draws of a chi-squared variable over its degrees of freedom, by its inverse CDF."""
    return 2.0 * gammaincinv(freedom / 2, uniforms) / freedom


def detectable_difference(
    parts: Components, problems: int, samples: int, seeds: int, wanted: float = 0.8
) -> float | None:
    """The smallest true difference that is found with probability `wanted`; None where even 1 (100 points) is not."""
    if power(1.0, parts, problems, samples, seeds) < wanted:
        return None
    low, high = 0.0, 1.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle, parts, problems, samples, seeds) >= wanted else (middle, high)
    return high


def problems_needed(difference: float, parts: Components, samples: int, seeds: int, wanted: float = 0.8) -> int | None:
    """The fewest problems that find a difference; None where no number does, as seeds differ too much."""
    return _fewest(lambda n: power(difference, parts, n, samples, seeds) >= wanted, 2, MOST_PROBLEMS)


def seeds_needed(difference: float, parts: Components, problems: int, samples: int, wanted: float = 0.8) -> int | None:
    """The fewest seeds that find a difference, at least two; None where no number does, as problems are too few."""
    return _fewest(lambda s: power(difference, parts, problems, samples, s) >= wanted, 2, MOST_SEEDS)


def _fewest(suffices: Callable[[int], bool], low: int, most: int) -> int | None:
    """The smallest number from `low` on that suffices, to 1 %; None where `most` does not."""
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
