"""Several completions of each problem: avg@k, pass@k, maj@k, and an interval that treats problems as clusters."""

import math
from collections import Counter
from collections.abc import Sequence

from lmix.evaluation.statistics.proportions import wilson_interval


def pass_at_k(n: int, correct: int, k: int) -> float:
    """pass@k: the probability that at least one of k completions is correct, from n completions.

    The unbiased estimator of Chen et al. (2021, arXiv 2107.03374, eq. 1): `1 - C(n - correct, k) / C(n, k)`.

    Raises:
        ValueError: 0 <= correct <= n or 1 <= k <= n does not hold.
    """
    if not 0 <= correct <= n:
        raise ValueError(f"correct must lie between 0 and n ({n}), not {correct}")
    if not 1 <= k <= n:
        raise ValueError(f"k must lie between 1 and n ({n}), not {k}: draw more completions")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def maj_at_k(answers: Sequence[str | None], correct: Sequence[bool], k: int) -> float:
    """maj@k: the probability that the most frequent of k answers is correct (Wang et al., arXiv 2203.11171).

    The completions are split into consecutive blocks of k, and each block votes once, so the mean over blocks is
    unbiased. Ties are broken at random; the result is the expected value. None casts no vote. A block without answers
    is wrong.

    Args:
        answers: the answers of n completions of one problem, in sampling order.
        correct: whether each answer is correct.
        k: number of completions in a vote.

    Raises:
        ValueError: 1 <= k <= n does not hold.
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
    # winners have equally many votes, so the mean over their votes equals the mean over winners
    votes = [right for answer, right in zip(answers, correct, strict=True) if answer in winners]
    return sum(votes) / len(votes)


def mean_interval(values: Sequence[float], samples: int = 1, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a rate over problems, clustered by problem: Wilson's interval with an effective sample size.

    The variance of the mean is estimated from the values of the problems (cluster-robust: Miller, "Adding Error Bars to
    Evals", arXiv 2411.00640, section 2.2). The effective sample size is the number of independent draws with this
    variance, limited to between one draw per problem and all draws (Korn and Graubard, 1998; compared with alternatives
    by Dean and Pagano, 2015, J. Survey Stat. Methodol. 3). With one completion per problem it equals Wilson's interval.

    Args:
        values: one value per problem, in [0, 1], such as the share of its completions that are correct.
        samples: the largest number of completions behind a value.
        confidence: confidence level of the interval.

    Returns:
        The lower and upper end; (0, 1) without problems.
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
