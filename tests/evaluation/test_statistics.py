"""Statistics against values computed by hand, or by counting all cases."""

from itertools import combinations

import pytest

from lmix.evaluation.statistics import contingency, maj_at_k, mcnemar_p, mean_interval, pass_at_k, wilson_interval


def test_wilson_interval():
    # p = 1/2, n = 10, z^2 = 3.8415: 1/2 -+ z / (n + z^2) * sqrt(n / 4 + z^2 / 4)
    assert wilson_interval(5, 10) == pytest.approx((0.2366, 0.7634), abs=5e-5)
    # at a rate of 0 the upper end is z^2 / (n + z^2)
    assert wilson_interval(0, 10) == (0.0, pytest.approx(3.8415 / 13.8415, abs=1e-5))
    assert wilson_interval(10, 10) == (pytest.approx(10 / 13.8415, abs=1e-5), 1.0)
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_a_wilson_interval_widens_with_confidence():
    # z = 1 at 68.27 %: 1/2 -+ 1 / 11 * sqrt(11 / 4)
    assert wilson_interval(5, 10, 0.682689492) == pytest.approx((0.5 - 0.150756, 0.5 + 0.150756), abs=1e-6)


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [(0, 0, 1.0), (5, 5, 1.0), (1, 9, 22 / 1024), (9, 1, 22 / 1024), (0, 7, 2 / 128), (2, 1, 1.0)],
)
def test_mcnemar_p(only_a, only_b, p):
    assert mcnemar_p(only_a, only_b) == pytest.approx(p, rel=1e-12)


def test_mcnemar_p_of_many_disagreements():
    # 2 P(X <= 2900) of 6,000 fair coins, by the normal distribution with continuity correction: z = -99.5 / 38.73
    assert mcnemar_p(2900, 3100) == pytest.approx(0.010199, rel=1e-2)


def test_contingency_sums_to_n():
    a = [True, True, True, False, False, False, True]
    b = [True, False, False, True, False, False, True]
    table = contingency(a, b)
    assert table == (2, 2, 1, 2)
    assert sum(table) == len(a)
    assert table.disagreement == 3
    assert contingency([], []) == (0, 0, 0, 0)


@pytest.mark.parametrize("correct", range(6))
@pytest.mark.parametrize("k", [1, 2, 5])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(correct, k):
    subsets = list(combinations([i < correct for i in range(5)], k))
    assert pass_at_k(5, correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize(
    ("answers", "right", "k", "expected"),
    [
        ("4454", "1101", 4, 1.0),  # three of four say 4
        ("4455", "1100", 4, 0.5),  # a tie
        ("4567", "1000", 4, 0.25),
        ("4-5-", "1000", 4, 0.5),  # - casts no vote
        ("----", "0000", 4, 0.0),
        ("4544", "1011", 2, (0.5 + 1.0) / 2),  # two votes of two
        ("454", "101", 2, 0.5),  # the third is left over
        ("4454", "1101", 1, 0.75),  # is avg@k
    ],
)
def test_maj_at_k(answers, right, k, expected):
    given = [None if a == "-" else a for a in answers]
    assert maj_at_k(given, [r == "1" for r in right], k) == pytest.approx(expected)


def test_an_interval_of_one_completion_a_problem_is_wilsons():
    for right in (0, 3, 9, 10):
        assert mean_interval([1.0] * right + [0.0] * (10 - right)) == pytest.approx(wilson_interval(right, 10))


def test_an_interval_of_samples_counts_effective_draws():
    # rates 0, 1/2, 1: mean 1/2, variance 1/6, so 3 * (1/4) / (1/6) = 4.5 draws
    assert mean_interval([0.0, 0.5, 1.0], 2) == pytest.approx(wilson_interval(2.25, 4.5))
    # problems that are all alike: every completion counts, and no more
    assert mean_interval([0.5] * 6, 4) == pytest.approx(wilson_interval(12, 24))
    # problems that are always or never right: one draw each, however many samples
    assert mean_interval([0.0, 1.0, 1.0], 8) == pytest.approx(wilson_interval(2, 3))
    assert mean_interval([], 4) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: maj_at_k(["4"], [True], 2), "k must"),
        (lambda: wilson_interval(3, 2), "successes"),
        (lambda: wilson_interval(1, 2, 1.0), "confidence"),
        (lambda: mcnemar_p(-1, 2), "counts"),
        (lambda: contingency([True], []), "same problems"),
        (lambda: pass_at_k(4, 5, 1), "correct"),
        (lambda: pass_at_k(4, 1, 5), "k must"),
    ],
)
def test_impossible_counts(call, message):
    with pytest.raises(ValueError, match=message):
        call()
