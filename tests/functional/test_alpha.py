import math

import pytest
import torch

from lmix.functional import AlphaUpdate, accuracy_weighted_alpha, alpha_of_counts, forgetting_and_gain


def flags(*values):
    return torch.tensor(values, dtype=torch.bool)


def adaptive_alpha(policy: torch.Tensor, mixed: torch.Tensor, **constants: float) -> AlphaUpdate:
    """Eq. 7 to 9, as the callback takes them on one rank."""
    return alpha_of_counts(*forgetting_and_gain(policy, mixed), policy.numel(), **constants)


def test_equations_7_to_9_by_hand():
    policy, mixed = flags(1, 1, 0, 0, 0), flags(1, 0, 1, 1, 0)
    update = adaptive_alpha(policy, mixed, offset=10.0, scale=40.0)
    assert (update.forgetting, update.gain, update.net_gain) == (1, 2, 1)
    assert update.alpha == pytest.approx(1 / (1 + math.exp(-0.25)))  # 1 of 5 is 20 of 100


@pytest.mark.parametrize(
    ("gained", "alpha"), [(25, 0.5), (60, 1 / (1 + math.exp(-1))), (0, 1 / (1 + math.exp(25 / 35)))]
)
def test_the_paper_s_constants_on_100_problems(gained, alpha):
    assert adaptive_alpha(torch.zeros(100), torch.arange(100) < gained).alpha == pytest.approx(alpha)


def test_on_100_problems_it_is_equation_9_bit_for_bit():
    for net_gain in range(-100, 101):
        score = (net_gain - 25.0) / 35.0
        alpha = 1.0 / (1.0 + math.exp(-score)) if score >= 0 else math.exp(score) / (1.0 + math.exp(score))
        assert alpha_of_counts(max(-net_gain, 0), max(net_gain, 0), 100).alpha == alpha


@pytest.mark.parametrize(
    ("problems", "forgetting", "gain", "alpha"),
    [
        (20, 0, 5, 0.5),  # a quarter of them, as 25 of 100
        (20, 0, 20, 1 / (1 + math.exp(-75 / 35))),  # what 100 of 100 give: above a half
        (20, 2, 14, 1 / (1 + math.exp(-1))),
        (7, 0, 0, 1 / (1 + math.exp(25 / 35))),
        (250, 10, 160, 1 / (1 + math.exp(-1))),
        (1000, 250, 0, 1 / (1 + math.exp(50 / 35))),
    ],
)
def test_the_paper_s_constants_on_other_numbers_of_problems(problems, forgetting, gain, alpha):
    assert alpha_of_counts(forgetting, gain, problems).alpha == pytest.approx(alpha)
    numbers = torch.arange(problems)
    policy, mixed = numbers < forgetting, numbers >= problems - gain
    assert adaptive_alpha(policy, mixed) == (pytest.approx(alpha), forgetting, gain, gain - forgetting)


def test_ties_and_an_empty_set_have_no_net_gain():
    neutral = 1 / (1 + math.exp(25 / 35))
    assert adaptive_alpha(flags(1, 0), flags(0, 1)) == (pytest.approx(neutral), 1, 1, 0)
    assert adaptive_alpha(flags(), flags()) == (pytest.approx(neutral), 0, 0, 0)


def test_extreme_scores_stay_inside_the_interval():
    everything, nothing = torch.ones(10**5), torch.zeros(10**5)
    assert adaptive_alpha(nothing, everything, scale=0.01).alpha == 1.0
    assert adaptive_alpha(everything, nothing, scale=0.01).alpha == 0.0


def test_bad_input():
    with pytest.raises(ValueError, match="same shape"):
        adaptive_alpha(flags(1), flags(1, 0))
    with pytest.raises(ValueError, match="scale must be positive"):
        adaptive_alpha(flags(1), flags(1), scale=0.0)


def test_the_accuracy_weighted_rule_by_hand():
    """Accuracies 0.2, 0.5 and 0.4 at alpha 0.3."""
    policy, mixture, reference = (math.exp(accuracy / 0.25) for accuracy in (0.2, 0.5, 0.4))
    target = (mixture * 0.3 + reference) / (policy + mixture + reference)
    assert accuracy_weighted_alpha((20, 50, 40), 100, 0.3) == pytest.approx(0.3 + 0.5 * (target - 0.3))
    assert accuracy_weighted_alpha((1, 1, 1), 2, 0.5) == accuracy_weighted_alpha((0, 0, 0), 0, 0.5) == 0.5


def test_the_accuracy_weighted_rule_goes_to_what_solves_more():
    assert accuracy_weighted_alpha((100, 0, 0), 100, 0.06) == 0.05  # kept from 0
    assert accuracy_weighted_alpha((0, 0, 100), 100, 0.94) == 0.95
    assert accuracy_weighted_alpha((0, 100, 0), 100, 0.3) == pytest.approx(
        0.3, abs=0.01
    )  # the mixture is best: it stays
    assert accuracy_weighted_alpha((0, 0, 1), 1, 0.5, temperature=1e-4, rate=1.0, highest=1.0) == 1.0


@pytest.mark.parametrize(
    "settings", [{"temperature": 0.0}, {"rate": 0.0}, {"rate": 1.1}, {"lowest": 0.6, "highest": 0.5}, {"highest": 1.1}]
)
def test_settings_of_the_accuracy_weighted_rule(settings):
    with pytest.raises(ValueError, match=r"temperature must be positive, rate lie in \(0, 1\]"):
        accuracy_weighted_alpha((0, 0, 0), 1, 0.5, **settings)
