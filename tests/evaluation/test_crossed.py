"""Methods over seeds and problems: by hand, against scipy and statsmodels, and by simulation."""

import numpy as np
import pytest
from scipy import stats

from lmix.evaluation.statistics import (
    Components,
    components,
    crossed_mean,
    detectable_difference,
    holm,
    mean_interval,
    paired_difference,
    power,
    problems_needed,
    seeds_needed,
    wilson_interval,
)

RUNS = 1500
ERROR = 3 * np.sqrt(0.05 * 0.95 / RUNS)  # three standard errors of a simulated rate of 5 or 95 %


def test_two_seeds_and_two_problems_by_hand():
    # differences [[0.1, 0.3], [0.2, 0.6]]: mean 0.3; seeds 0.2, 0.4; problems 0.15, 0.45; rest -+0.05
    # mean squares: seeds 2 * 2 * 0.1^2 / 1 = 0.04; problems 2 * 2 * 0.15^2 = 0.09; rest 4 * 0.05^2 / 1 = 0.01
    # variance (0.04 + 0.09 - 0.01) / 4 = 0.03, one third of it of seeds; both parts have one degree of freedom
    found = paired_difference([[0.6, 0.8], [0.7, 1.0]], [[0.5, 0.5], [0.5, 0.4]])
    half = stats.t.ppf(0.975, 1) * np.sqrt(0.03)
    assert (found.low, found.high) == (-1.0, 1.0)  # half is 2.2 points of share: cut
    assert half > 2
    assert found.mean == pytest.approx(0.3)
    assert found.p == pytest.approx(2 * stats.t.sf(0.3 / np.sqrt(0.03), 1))
    assert (found.seeds, found.problems, found.says) == (2, 2, 0)


def test_one_seed_is_scipys_paired_t_test():
    chance = np.random.default_rng(1)
    a, b = chance.random((2, 1, 30))
    theirs = stats.ttest_rel(a[0], b[0])
    found = paired_difference(a, b)
    assert found.p == pytest.approx(theirs.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval()))


def test_three_seeds_by_hand():
    # differences [[0, 0.2], [0.1, 0.3], [0.2, 0.7]]: mean 0.25; seeds 0.1, 0.2, 0.45; problems 0.1, 0.4
    # mean squares: seeds 2 (0.15^2 + 0.05^2 + 0.2^2) / 2 = 0.065; problems 3 * 2 * 0.15^2 = 0.135;
    # rest [0.05, -0.05], [0.05, -0.05], [-0.1, 0.1] around seed + problem - mean: (4 * 0.05^2 + 2 * 0.1^2) / 2 = 0.015
    a = [[0.5, 0.5], [0.5, 0.5], [0.5, 0.9]]
    found = paired_difference(a, [[0.5, 0.3], [0.4, 0.2], [0.3, 0.2]])
    of_seeds, of_problems = 0.065 / 6, (0.135 - 0.015) / 6
    error = np.sqrt(of_seeds + of_problems)

    def threshold(p):
        cochran = (of_seeds * stats.t.isf(p / 2, 2) + of_problems * stats.t.isf(p / 2, 1)) / (of_seeds + of_problems)
        return max(cochran * error, stats.t.isf(p / 2, 1) * np.sqrt(0.135 / 6))  # or that of the given seeds

    assert found.mean == pytest.approx(0.25)
    assert threshold(found.p) == pytest.approx(0.25)
    assert found.high == min(1.0, 0.25 + threshold(0.05))


def test_seeds_that_agree_on_every_problem_are_worth_one():
    chance = np.random.default_rng(1)
    a, b = chance.random((2, 1, 30))
    one, three = paired_difference(a, b), paired_difference(a.repeat(3, axis=0), b)
    assert (three.mean, three.low, three.high) == pytest.approx((one.mean, one.low, one.high), abs=1e-9)
    with pytest.raises(ValueError, match="same seeds and problems"):
        paired_difference(a.repeat(3, axis=0), b.repeat(2, axis=0))
    with pytest.raises(ValueError, match="at least 1 seed and 2 problems"):
        crossed_mean([[1.0]])


def test_seeds_that_agree_by_luck_make_no_interval_narrower_than_their_own():
    chance = np.random.default_rng(3)
    values = chance.random((2, 40)) - 0.5
    values += 0.1 - values.mean(axis=1, keepdims=True)  # both seeds have the same mean
    found, given = paired_difference(values, np.zeros((2, 40))), stats.ttest_1samp(values.mean(axis=0), 0)
    assert (found.low, found.high) == pytest.approx(tuple(given.confidence_interval()))
    assert found.p == pytest.approx(given.pvalue)


def test_the_smallest_p_are_numbers():
    chance = np.random.default_rng(0)
    values = 0.5 + 0.2 * chance.random((1, 20))
    found = paired_difference(values, np.zeros((1, 20))).p
    assert 1e-30 < found < 1e-16
    assert found == pytest.approx(stats.ttest_1samp(values[0], 0).pvalue)
    alike = Components(0.0, 0.0, 0.0, 0.0)  # any difference is seen
    assert power(0.01, alike, 100, 4, 3) == power(0.01, alike, 100, 4, 1) == 1.0


def test_methods_that_never_differ():
    same = paired_difference([[1.0, 0.0, 1.0]], [[1.0, 0.0, 1.0]])
    assert (same.mean, same.p) == (0.0, 1.0)
    assert same.high == -same.low == pytest.approx(wilson_interval(0, 3)[1])
    rate = crossed_mean([[1.0] * 10] * 3)
    assert (rate.low, rate.high) == pytest.approx(wilson_interval(10, 10))


def test_a_rate_of_one_seed_has_the_clustered_interval():
    values = [0.25, 0.5, 1.0, 0.0, 0.75]
    rate = crossed_mean([values])
    assert (rate.low, rate.high) == pytest.approx(mean_interval(values))


def test_a_rate_of_several_seeds_stays_inside_its_range():
    rate = crossed_mean([[0.0, 0.2, 0.1], [0.4, 0.5, 0.2]])
    assert rate.low == 0.0
    assert rate.mean < rate.high <= 1.0


def test_components_are_the_anovas():
    # as above: seeds (0.04 - 0.01) / 2, problems (0.09 - 0.01) / 2, the rest 0.01
    found = components(np.array([[[0.6], [0.8]], [[0.7], [1.0]]]), np.array([[[0.5], [0.5]], [[0.5], [0.4]]]))
    assert (found.seed, found.problem, found.interaction, found.sample) == pytest.approx((0.015, 0.04, 0.01, 0.0))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])


def test_against_statsmodels():
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    from statsmodels.regression.linear_model import OLS
    from statsmodels.stats.multitest import multipletests

    assert wilson_interval(7, 30) == pytest.approx(proportion.proportion_confint(7, 30, method="wilson"))
    p = [0.2, 0.001, 0.04, 0.01]
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])
    # the cluster-robust variance of the mean of all completions, without small-sample factor, is mean_interval's
    chance = np.random.default_rng(0)
    draws = chance.random((40, 8)) < chance.beta(1, 1, 40)[:, None]
    fit = OLS(draws.ravel().astype(float), np.ones(320)).fit(
        cov_type="cluster", cov_kwds={"groups": np.arange(40).repeat(8), "use_correction": False}
    )
    mean = draws.mean()
    effective = mean * (1 - mean) / fit.bse[0] ** 2
    assert 40 < effective < 320
    found = mean_interval(draws.mean(axis=1).tolist(), 8)
    assert found == pytest.approx(wilson_interval(mean * effective, effective))
    # two-way clustered variance (Cameron, Gelbach and Miller), with the factors of the mean squares
    values = 0.2 * chance.random((3, 20)) + 0.2 * chance.random((3, 1)) + 0.2 * chance.random((1, 20))
    seeds, problems = (np.arange(3).repeat(20), np.tile(np.arange(20), 3))
    arguments = {"use_correction": False}
    parts = [
        OLS(values.ravel(), np.ones(60)).fit(cov_type="cluster", cov_kwds={"groups": g, **arguments}).bse[0] ** 2
        for g in (seeds, problems)
    ]
    rest = values - values.mean(1, keepdims=True) - values.mean(0) + values.mean()
    error = (rest**2).sum() / (2 * 19) / 60
    ours = paired_difference(values, np.zeros((3, 20)))
    of_seeds, of_problems = parts[0] * 3 / 2, parts[1] * 20 / 19 - error
    critical = (of_seeds * stats.t.isf(0.025, 2) + of_problems * stats.t.isf(0.025, 19)) / (of_seeds + of_problems)
    assert of_problems > 0
    assert ours.mean == pytest.approx(values.mean())
    assert ours.mean - ours.low == pytest.approx(critical * np.sqrt(of_seeds + of_problems))


@pytest.mark.parametrize(("problems", "samples", "shape"), [(100, 1, (2, 2)), (100, 4, (1, 1)), (300, 4, (0.3, 0.7))])
def test_intervals_of_one_policy_cover(problems, samples, shape):
    """Problems whose difficulty follows a beta distribution: the interval holds the population's rate 95 % of times."""
    chance = np.random.default_rng(5)
    rates = chance.beta(*shape, (RUNS, problems))
    shares = chance.binomial(samples, rates) / samples
    truth = shape[0] / sum(shape)
    covered = [low <= truth <= high for low, high in (mean_interval(row.tolist(), samples) for row in shares)]
    assert np.mean(covered) == pytest.approx(0.95, abs=ERROR)


def study(chance, difference, parts_sd, seeds, problems, samples):
    """Scores `[2, S, N]` of two methods whose rates differ by seed, by problem and by both."""
    seed_sd, problem_sd, both_sd = parts_sd
    base = chance.uniform(0.3, 0.5, problems)
    shift = chance.normal(0, seed_sd, (2, seeds, 1)) + chance.normal(0, problem_sd, (2, 1, problems))
    rates = base + shift + chance.normal(0, both_sd, (2, seeds, problems))
    rates[0] += difference
    return chance.binomial(samples, np.clip(rates, 0, 1)) / samples


@pytest.mark.parametrize(
    ("seeds", "problems", "samples", "spread"),
    [
        (1, 150, 1, (0.0, 0.08, 0.0)),  # seeds that do not matter
        (3, 100, 4, (0.02, 0.08, 0.05)),
        (3, 300, 4, (0.06, 0.02, 0.0)),  # seeds that matter more than anything else
        (5, 60, 2, (0.03, 0.08, 0.05)),
    ],
)
def test_the_paired_test_keeps_its_level_and_its_interval_covers(seeds, problems, samples, spread):
    chance = np.random.default_rng(2)
    found = [paired_difference(*study(chance, 0.0, spread, seeds, problems, samples)) for _ in range(RUNS)]
    level = np.mean([e.p <= 0.05 for e in found])
    covered = np.mean([e.low <= 0 <= e.high for e in found])
    assert covered == pytest.approx(1 - level, abs=1e-9)
    assert 0.95 - ERROR < covered < 0.99  # cautious where seeds matter little
    if seeds == 1 or spread[0] > 0.05:
        assert covered < 0.95 + ERROR


@pytest.mark.parametrize(
    ("difference", "seeds", "problems", "samples", "spread"),
    [
        (0.08, 1, 200, 1, (0.0, 0.05, 0.0)),
        (0.06, 3, 150, 4, (0.02, 0.08, 0.05)),
        (0.05, 5, 300, 2, (0.02, 0.05, 0.05)),
    ],
)
def test_power_agrees_with_simulation(difference, seeds, problems, samples, spread):
    """Within 3 points; variances are those that `study` draws by."""
    chance = np.random.default_rng(3)
    found = [paired_difference(*study(chance, difference, spread, seeds, problems, samples)) for _ in range(RUNS)]
    seed, problem, both = (2 * sd**2 for sd in spread)
    # mean of p (1 - p) over both methods: p is uniform in [0.3, 0.5], moved by the difference and by the spreads
    means = np.array([0.4 + difference, 0.4])
    wide = 0.2**2 / 12 + sum(sd**2 for sd in spread)
    parts = Components(seed, problem, both, float((means * (1 - means) - wide).sum()))
    expected = power(difference, parts, problems, samples, seeds)
    assert 0.3 < expected < 0.95
    assert np.mean([e.p <= 0.05 for e in found]) == pytest.approx(expected, abs=0.03)


def test_components_are_found_again():
    chance = np.random.default_rng(4)
    spread, found = (0.05, 0.1, 0.12), []  # large enough that hardly any estimate is cut at 0
    for _ in range(300):
        base = chance.uniform(0.4, 0.6, 100)
        rates = base + chance.normal(0, spread[0], (2, 4, 1)) + chance.normal(0, spread[1], (2, 1, 100))
        rates = np.clip(rates + chance.normal(0, spread[2], (2, 4, 100)), 0, 1)
        draws = chance.random((4, 2, 4, 100)) < rates
        draws = np.moveaxis(draws, 0, -1).astype(float)
        found.append(components(*draws))
    for name, sd in zip(("seed", "problem", "interaction"), spread, strict=True):
        assert np.mean([getattr(f, name) for f in found]) == pytest.approx(2 * sd**2, rel=0.2)


def test_what_a_study_needs():
    parts = Components(0.0005, 0.01, 0.0, 0.4)
    assert power(0.0, parts, 300, 4, 3) < 0.055
    seen = detectable_difference(parts, 300, 4, 3)
    assert seen is not None
    assert power(seen, parts, 300, 4, 3) == pytest.approx(0.8, abs=0.01)
    assert detectable_difference(parts, 300, 4, 10) < seen
    needed = problems_needed(0.1, parts, 4, 3)
    assert needed is not None
    assert power(0.1, parts, needed, 4, 3) >= 0.8 > power(0.1, parts, int(needed * 0.9), 4, 3)
    assert problems_needed(0.01, parts, 4, 3) is None  # seeds differ by more: no number of problems helps
    seeds = seeds_needed(0.05, parts, 300, 4)
    assert seeds is not None
    assert power(0.05, parts, 300, 4, seeds) >= 0.8 > power(0.05, parts, 300, 4, seeds - 1)
    assert detectable_difference(Components(4.0, 0.0, 0.0, 0.0), 100, 1, 2) is None
