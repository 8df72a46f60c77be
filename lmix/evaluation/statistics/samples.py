"""Several completions of each problem: avg@k, pass@k, maj@k, and an interval that treats problems as clusters."""

import math
from collections import Counter
from collections.abc import Sequence

from lmix.evaluation.statistics.proportions import wilson_interval


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Probability that one of k completions is right, from n of which `correct` are.

    The unbiased estimator of Chen et al. (2021, arXiv 2107.03374, eq. 1): `1 - C(n - correct, k) / C(n, k)`.

    Raises:
        ValueError: not 0 <= correct <= n, or not 1 <= k <= n.
    """
    if not 0 <= correct <= n:
        raise ValueError(f"correct must lie between 0 and n ({n}), not {correct}")
    if not 1 <= k <= n:
        raise ValueError(f"k must lie between 1 and n ({n}), not {k}: draw more completions")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def maj_at_k(answers: Sequence[str | None], correct: Sequence[bool], k: int) -> float:
    """Probability that the most frequent of k answers is right (self-consistency, Wang et al., arXiv 2203.11171).

    Each run of k completions that do not overlap is one vote, so the mean over them is unbiased. Answers that are
    equally frequent are chosen among at random: the result is the expected value. None casts no vote; a vote without
    answers is wrong.

    Args:
        answers: of n completions of one problem, in the order in which they were drawn.
        correct: whether each is right.
        k: completions of a vote.

    Raises:
        ValueError: not 1 <= k <= n.
    """
    if not 1 <= k <= len(answers):
        raise ValueError(f"k must lie between 1 and n ({len(answers)}), not {k}: draw more completions")
    starts = range(0, len(answers) - k + 1, k)
    return sum(_vote(answers[i : i + k], correct[i : i + k]) for i in starts) / len(starts)


def _vote(answers: Sequence[str | None], correct: Sequence[bool]) -> float:
    counts = Counter(answer for answer in answers if answer is not None)
    if not counts:
        return 0.0
    most = max(counts.values())
    winners = {answer for answer, count in counts.items() if count == most}
    # winners have equally many votes, so a mean over their votes is one over the winners
    votes = [right for answer, right in zip(answers, correct, strict=True) if answer in winners]
    return sum(votes) / len(votes)


def mean_interval(values: Sequence[float], samples: int = 1, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a rate over problems, clustered by problem: Wilson's with the effective number of draws.

    The variance of the mean is that of the problems' own values (cluster-robust: Miller, "Adding Error Bars to Evals",
    arXiv 2411.00640, section 2.2), and the effective number is that of independent draws with this variance, between
    one a problem and all (Korn and Graubard, 1998; compared with others by Dean and Pagano, 2015, J. Survey Stat.
    Methodol. 3). With one completion of each problem it is Wilson's interval exactly.

    Args:
        values: one a problem, in [0, 1], such as the share of its completions that are right.
        samples: completions that each value comes from, at most.
        confidence: of the interval.

    Returns:
        Its lower and upper end; (0, 1) without problems.
    """
    problems = len(values)
    if not problems:
        return 0.0, 1.0
    mean = math.fsum(values) / problems
    mean = min(max(mean, 0.0), 1.0)
    variance = math.fsum((value - mean) ** 2 for value in values) / problems
    bernoulli = mean * (1.0 - mean)
    draws = float(problems)
    if bernoulli > 0.0:
        draws = problems * min(max(bernoulli / variance, 1.0), samples) if variance > 0.0 else problems * samples
    return wilson_interval(mean * draws, draws, confidence)
