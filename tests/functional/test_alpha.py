import math

import pytest
import torch

from lmix.functional import net_gain_alpha


def flags(*values):
    return torch.tensor(values, dtype=torch.bool)


def test_equations_7_to_9_by_hand():
    policy, mixed = flags(1, 1, 0, 0, 0), flags(1, 0, 1, 1, 0)
    update = net_gain_alpha(policy, mixed, offset=0.5, scale=2.0)
    assert (update.forgetting, update.gain, update.net_gain) == (1, 2, 1)
    assert update.alpha == pytest.approx(1 / (1 + math.exp(-0.25)))


@pytest.mark.parametrize(
    ("gained", "alpha"), [(25, 0.5), (60, 1 / (1 + math.exp(-1))), (0, 1 / (1 + math.exp(25 / 35)))]
)
def test_the_paper_s_constants_on_100_problems(gained, alpha):
    assert net_gain_alpha(torch.zeros(100), torch.arange(100) < gained).alpha == pytest.approx(alpha)


def test_ties_and_an_empty_set_have_no_net_gain():
    neutral = 1 / (1 + math.exp(25 / 35))
    assert net_gain_alpha(flags(1, 0), flags(0, 1)) == (pytest.approx(neutral), 1, 1, 0)
    assert net_gain_alpha(flags(), flags()) == (pytest.approx(neutral), 0, 0, 0)


def test_extreme_scores_stay_inside_the_interval():
    everything, nothing = torch.ones(10**5), torch.zeros(10**5)
    assert net_gain_alpha(nothing, everything, scale=1.0).alpha == 1.0
    assert net_gain_alpha(everything, nothing, scale=1.0).alpha == 0.0


def test_bad_input():
    with pytest.raises(ValueError, match="same problems"):
        net_gain_alpha(flags(1), flags(1, 0))
    with pytest.raises(ValueError, match="scale must be positive"):
        net_gain_alpha(flags(1), flags(1), scale=0.0)
