import pytest
import torch

from lmix.functional import (
    clipped_surrogate_loss,
    group_token_weights,
    k3_kl,
    sampler_weights,
)


def written_out(log_probs, old, advantages, mask, group, radius):
    """Eq. 6 as nested loops over groups, rows and tokens."""
    per_group = []
    for g in group.unique():
        total, tokens = torch.zeros((), dtype=log_probs.dtype), 0
        for i in (group == g).nonzero().flatten().tolist():
            for t in range(log_probs.shape[1]):
                if mask[i, t]:
                    ratio = torch.exp(log_probs[i, t] - old[i, t])
                    clipped = torch.clamp(ratio, 1 - radius, 1 + radius)
                    total = total + torch.min(ratio * advantages[i], clipped * advantages[i])
                    tokens += 1
        per_group.append(total / max(tokens, 1))
    return -sum(per_group) / len(per_group)


def case(rows=6, width=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    old = -torch.rand(rows, width, generator=generator, dtype=torch.float64)
    log_probs = (old + 0.5 * torch.randn(rows, width, generator=generator, dtype=torch.float64)).requires_grad_()
    advantages = torch.randn(rows, generator=generator, dtype=torch.float64)
    lengths = torch.tensor([5, 1, 3, 4, 2, 5])
    return log_probs, old, advantages, torch.arange(width) < lengths[:, None], torch.tensor([7, 7, 3, 3, 3, 9])


def test_by_hand():
    # one group, ratios 1.5 (clipped at 1.2), 1 and 0.5 (A < 0: clipped at 0.8); three tokens
    log_probs = torch.tensor([[1.5, 1.0], [0.5, 9.0]]).log().requires_grad_()
    mask = torch.tensor([[True, True], [True, False]])
    loss, stats = clipped_surrogate_loss(
        log_probs, torch.zeros(2, 2), torch.tensor([1.0, -1.0]), mask, torch.zeros(2, dtype=torch.long)
    )
    assert loss.item() == pytest.approx(-(1.2 + 1.0 - 0.8) / 3)
    assert stats.clip_fraction.item() == pytest.approx(2 / 3)
    assert stats.mean_ratio.item() == pytest.approx((1.5 + 1.0 + 0.5) / 3)
    loss.backward()
    # only the unclipped token has a gradient: -A * ratio / 3
    assert torch.allclose(log_probs.grad, torch.tensor([[0.0, -1 / 3], [0.0, 0.0]]))


@pytest.mark.parametrize("seed", range(5))
def test_value_and_gradient_against_the_written_out_equation(seed):
    log_probs, old, advantages, mask, group = case(seed=seed)
    loss, _ = clipped_surrogate_loss(log_probs, old, advantages, mask, group)
    twin = written_out(log_probs, old, advantages, mask, group, 0.2)
    assert torch.allclose(loss, twin, rtol=0.0, atol=1e-14)
    (found,) = torch.autograd.grad(loss, log_probs)
    (expected,) = torch.autograd.grad(twin, log_probs)
    assert torch.allclose(found, expected, rtol=0.0, atol=1e-14)


def test_the_ratio_is_exactly_1_for_equal_log_probs():
    log_probs = torch.randn(3, 4, requires_grad=True)
    mask, group = torch.ones(3, 4, dtype=torch.bool), torch.arange(3)
    _, stats = clipped_surrogate_loss(log_probs, log_probs.detach(), torch.ones(3), mask, group)
    assert stats.mean_ratio.item() == 1.0
    assert stats.clip_fraction.item() == 0.0


def test_a_dead_group_gives_exactly_zero():
    log_probs, old, advantages, mask, group = case()
    advantages = torch.where(group == 3, 0.0, advantages)
    loss, _ = clipped_surrogate_loss(log_probs, old, advantages, mask, group)
    (gradient,) = torch.autograd.grad(loss, log_probs)
    assert torch.equal(gradient[group == 3], torch.zeros(3, 5, dtype=torch.float64))
    assert gradient[group == 7].abs().sum() > 0


def test_padding_may_hold_anything_and_an_empty_row_gives_no_nan():
    log_probs, old, advantages, mask, group = case()
    mask[1] = False
    expected, _ = clipped_surrogate_loss(log_probs, old, advantages, mask, group)
    spoiled = torch.where(mask, log_probs.detach(), -torch.inf).requires_grad_()
    loss, stats = clipped_surrogate_loss(spoiled, torch.where(mask, old, torch.nan), advantages, mask, group)
    assert torch.equal(loss, expected)
    assert torch.isfinite(stats.mean_ratio)
    (gradient,) = torch.autograd.grad(loss, spoiled)
    assert torch.isfinite(gradient).all()
    assert torch.equal(gradient[~mask], torch.zeros_like(gradient[~mask]))


def test_a_fully_masked_batch_is_zero():
    zeros = torch.zeros(2, 3)
    loss, stats = clipped_surrogate_loss(zeros, zeros, torch.ones(2), zeros.bool(), torch.zeros(2, dtype=torch.long))
    assert loss.item() == 0.0
    assert stats.clip_fraction.item() == 0.0


def test_an_asymmetric_radius():
    log_probs = torch.tensor([[1.25, 0.85]]).log()
    mask, group = torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, dtype=torch.long)
    loss, stats = clipped_surrogate_loss(log_probs, torch.zeros(1, 2), torch.ones(1), mask, group, (0.2, 0.28))
    assert loss.item() == pytest.approx(-(1.25 + 0.85) / 2)
    assert stats.clip_fraction.item() == 0.0


def test_the_normaliser_is_the_group_s_tokens_and_the_mean_is_over_groups():
    weights = group_token_weights(torch.tensor([3, 1, 2]), torch.tensor([5, 5, 2]))
    assert torch.allclose(weights, torch.tensor([1 / 8, 1 / 8, 1 / 4]))


def test_a_group_without_a_token_counts_as_a_group():
    weights = group_token_weights(torch.tensor([0, 0, 2]), torch.tensor([0, 0, 1]))
    assert weights[2] == 1 / 4
    assert torch.isfinite(weights).all()


def test_weights_are_float64_where_what_they_weigh_is():
    tokens, group = torch.ones(3, dtype=torch.long), torch.arange(3)
    assert group_token_weights(tokens, group, torch.float64)[0].item() == 1 / 3  # to the last bit
    assert group_token_weights(tokens, group).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tokens_are_counted_exactly_in_half_precision(dtype):
    """bfloat16 can't count past 256, and float16 not past 2048."""
    log_probs = torch.zeros(2, 4099, dtype=dtype, requires_grad=True)
    mask, group = torch.ones(2, 4099, dtype=dtype), torch.zeros(2, dtype=torch.long)
    loss, _ = clipped_surrogate_loss(log_probs, log_probs.detach(), torch.ones(2), mask, group)
    (gradient,) = torch.autograd.grad(loss, log_probs)
    assert gradient[0, 0].item() == pytest.approx(-1 / 8198, rel=1e-2)


def test_sampler_weights_by_hand():
    old = torch.tensor([[0.5, 0.2], [0.9, 0.3]]).log().requires_grad_()
    sampled = torch.tensor([[0.25, 0.4], [0.1, 0.3]]).log()
    weights = sampler_weights(old, sampled, cap=3.0)
    assert torch.allclose(weights, torch.tensor([[2.0, 0.5], [3.0, 1.0]]))
    assert not weights.requires_grad
    assert torch.equal(sampler_weights(sampled, sampled, cap=1.0), torch.ones(2, 2))


def test_k3_by_hand_and_unbiased():
    policy, reference = torch.randn(6).log_softmax(-1), torch.randn(6).log_softmax(-1)
    assert torch.allclose(k3_kl(torch.tensor(0.5).log(), torch.tensor(0.25).log()), torch.tensor(0.5 - 1 + 0.6931472))
    assert (k3_kl(policy, reference) >= 0).all()
    exact = (policy.exp() * (policy - reference)).sum()
    assert torch.allclose((policy.exp() * k3_kl(policy, reference)).sum(), exact, atol=1e-6)
