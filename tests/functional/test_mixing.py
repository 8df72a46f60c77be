import math

import pytest
import torch

from lmix.functional import mix_log_probs, mix_logits, mix_streams, mix_streams_log_probs


def test_logit_averaging_is_equation_1():
    policy, reference = torch.tensor([1.0, 2.0, -4.0]), torch.tensor([3.0, -2.0, 0.0])
    assert torch.allclose(mix_logits(policy, reference, 0.25), torch.tensor([1.5, 1.0, -3.0]))


@pytest.mark.parametrize("mix", [mix_logits, mix_log_probs])
def test_alpha_0_and_1_are_one_stream_bit_for_bit(mix):
    policy, reference = torch.randn(7, 11).log_softmax(-1), torch.randn(7, 11).log_softmax(-1)
    assert torch.equal(mix(policy, reference, 0.0), policy)
    assert torch.equal(mix(policy, reference, 1.0), reference)
    # even where the other stream is broken
    assert torch.equal(mix(policy, torch.full_like(policy, math.nan), 0.0), policy)


def test_probability_averaging_against_a_written_out_softmax():
    policy, reference = torch.randn(5, 9, dtype=torch.float64), torch.randn(5, 9, dtype=torch.float64)
    mixed = mix_log_probs(policy.log_softmax(-1), reference.log_softmax(-1), 0.3)
    expected = 0.7 * policy.exp() / policy.exp().sum(-1, keepdim=True)
    expected += 0.3 * reference.exp() / reference.exp().sum(-1, keepdim=True)
    assert torch.allclose(mixed.exp(), expected, atol=1e-12)
    assert torch.allclose(mixed.exp().sum(-1), torch.ones(5, dtype=torch.float64))


def test_probability_averaging_with_an_impossible_token_of_one_stream():
    mixed = mix_log_probs(torch.tensor([-math.inf, 0.0]), torch.tensor([0.0, -math.inf]), 0.25)
    assert torch.allclose(mixed.exp(), torch.tensor([0.25, 0.75]))


@pytest.mark.parametrize("mix", [mix_logits, mix_log_probs])
@pytest.mark.parametrize("alpha", [-0.1, 1.0001, math.nan])
def test_alpha_outside_the_unit_interval(mix, alpha):
    with pytest.raises(ValueError, match=r"alpha must lie in \[0, 1\]"):
        mix(torch.zeros(2), torch.zeros(2), alpha)


def test_two_streams_are_the_case_k_2_and_weights_may_be_negative():
    z = torch.randn(3, 4, 8)
    assert torch.allclose(mix_streams([z[0], z[1]], [0.6, 0.4]), mix_logits(z[0], z[1], 0.4))
    dexperts = mix_streams([z[0], z[1], z[2]], [1.0, 2.0, -2.0])
    assert torch.allclose(dexperts, z[0] + 2 * (z[1] - z[2]), atol=1e-6)


def test_weights_that_make_no_mixture():
    z = torch.zeros(2)
    with pytest.raises(ValueError, match="as many weights"):
        mix_streams([z, z], [1.0])
    with pytest.raises(ValueError, match="all weights are 0"):
        mix_streams([z, z], [0.0, 0.0])
    with pytest.raises(ValueError, match="sum to 1"):
        mix_streams_log_probs([z, z], [0.7, 0.7])
