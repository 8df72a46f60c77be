import math

import pytest
import torch

from lmix.functional import mix_streams, mix_streams_log_probs


def test_logit_averaging_is_equation_1():
    policy, reference = torch.tensor([1.0, 2.0, -4.0]), torch.tensor([3.0, -2.0, 0.0])
    assert torch.allclose(mix_streams([policy, reference], [0.75, 0.25]), torch.tensor([1.5, 1.0, -3.0]))


@pytest.mark.parametrize("mix", [mix_streams, mix_streams_log_probs])
def test_alpha_0_and_1_are_one_stream_bit_for_bit(mix):
    policy, reference = torch.randn(7, 11).log_softmax(-1), torch.randn(7, 11).log_softmax(-1)
    assert torch.equal(mix([policy, reference], [1.0, 0.0]), policy)
    assert torch.equal(mix([policy, reference], [0.0, 1.0]), reference)
    # even where the other stream is broken
    assert torch.equal(mix([policy, torch.full_like(policy, math.nan)], [1.0, 0.0]), policy)


def test_probability_averaging_against_a_written_out_softmax():
    policy, reference = torch.randn(5, 9, dtype=torch.float64), torch.randn(5, 9, dtype=torch.float64)
    mixed = mix_streams_log_probs([policy.log_softmax(-1), reference.log_softmax(-1)], [0.7, 0.3])
    expected = 0.7 * policy.exp() / policy.exp().sum(-1, keepdim=True)
    expected += 0.3 * reference.exp() / reference.exp().sum(-1, keepdim=True)
    assert torch.allclose(mixed.exp(), expected, atol=1e-12)
    assert torch.allclose(mixed.exp().sum(-1), torch.ones(5, dtype=torch.float64))


def test_probability_averaging_with_an_impossible_token_of_one_stream():
    mixed = mix_streams_log_probs([torch.tensor([-math.inf, 0.0]), torch.tensor([0.0, -math.inf])], [0.75, 0.25])
    assert torch.allclose(mixed.exp(), torch.tensor([0.25, 0.75]))


def test_two_streams_are_the_case_k_2_and_weights_may_be_negative():
    z = torch.randn(3, 4, 8)
    assert torch.allclose(mix_streams([z[0], z[1]], [0.6, 0.4]), 0.6 * z[0] + 0.4 * z[1])
    dexperts = mix_streams([z[0], z[1], z[2]], [1.0, 2.0, -2.0])
    assert torch.allclose(dexperts, z[0] + 2 * (z[1] - z[2]), atol=1e-6)


def test_weights_that_make_no_mixture():
    z = torch.zeros(2)
    with pytest.raises(ValueError, match="give one for each stream"):
        mix_streams([z, z], [1.0])
    with pytest.raises(ValueError, match="all weights are 0"):
        mix_streams([z, z], [0.0, 0.0])
    with pytest.raises(ValueError, match="sum to 1"):
        mix_streams_log_probs([z, z], [0.7, 0.7])


@pytest.mark.parametrize("weights", [[0.7, 0.3], [0.9, 0.1], [1.0, 1.0, -1.0], [0.5, 0.25, 0.25], [1.5, -0.5]])
def test_bfloat16_streams_are_mixed_in_float32_and_rounded_once(weights):
    values = list(torch.randn(len(weights), 64, 97, generator=torch.Generator().manual_seed(0)).bfloat16())
    mixed = mix_streams(values, weights)
    assert mixed.dtype == torch.bfloat16
    exact = sum(value.double() * weight for value, weight in zip(values, weights, strict=True))
    half_a_unit = torch.exp2(exact.abs().log2().floor() - 8)  # in bfloat16's last place
    assert ((mixed.double() - exact).abs() <= half_a_unit * 1.001 + 1e-6).all()


def test_bfloat16_by_hand():
    # 1 + 2^-8 lies between two bfloat16s: in bfloat16 each 2^-8 would be lost, and both together are 2^-7
    one, tiny = torch.tensor([1.0]).bfloat16(), torch.tensor([2.0**-8]).bfloat16()
    assert mix_streams([one, tiny, tiny], [1.0, 1.0, 1.0]).item() == 1.0 + 2.0**-7
    assert (one + tiny + tiny).item() == 1.0


@pytest.mark.parametrize("mix", [mix_streams, mix_streams_log_probs])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.875])
def test_a_scalar_weight_and_one_for_each_row_give_the_same_mixture(mix, dtype, alpha):
    policy, reference = torch.randn(2, 33, 50, generator=torch.Generator().manual_seed(1)).log_softmax(-1).to(dtype)
    alphas = torch.full((33, 1), alpha)
    scalar = mix([policy, reference], [1.0 - alpha, alpha])
    by_row = mix([policy, reference], [1.0 - alphas, alphas])
    assert scalar.dtype == by_row.dtype == dtype
    if mix is mix_streams:
        assert torch.equal(scalar, by_row)
    else:  # log(alpha) is rounded to float32 for rows
        assert torch.allclose(scalar, by_row, rtol=max(torch.finfo(dtype).eps, 1e-6))


def test_probabilities_in_bfloat16_are_those_of_float32_rounded_once():
    policy, reference = torch.randn(2, 20, 50, generator=torch.Generator().manual_seed(2)).log_softmax(-1).bfloat16()
    expected = mix_streams_log_probs([policy.float(), reference.float()], [0.3, 0.7]).bfloat16()
    assert torch.equal(mix_streams_log_probs([policy, reference], [0.3, 0.7]), expected)
