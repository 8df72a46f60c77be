"""Each objective by hand: literal log-probabilities, advantages, terms and weights."""

import math

import pytest
import torch

from lmix.training.objectives import (
    CHORD,
    CISPO,
    DAPO,
    GSPO,
    LUFFY,
    RLOO,
    DrGRPO,
    LogitFusion,
    Scored,
    StepTotals,
)

REWARDS = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
TOKENS = torch.tensor([[3, 1], [2, 4]])
TOTALS = StepTotals(groups=2, tokens=10, samples=2, max_new_tokens=8)


def scored(log_probs, old, advantages, mask=None, demonstration=None) -> Scored:
    mask = torch.ones_like(old, dtype=torch.bool) if mask is None else mask
    return Scored(log_probs, old, torch.tensor(advantages), mask, None, demonstration)


def gradient(objective, log_probs, *arguments, **others):
    """Of the summed terms by the log-probabilities."""
    log_probs = log_probs.clone().requires_grad_()
    terms, logged = objective.terms(scored(log_probs, *arguments, **others))
    return terms.detach(), torch.autograd.grad(terms.sum(), log_probs)[0], logged


def test_dr_grpo_subtracts_the_mean_and_divides_by_the_limit():
    objective = DrGRPO()
    assert torch.allclose(objective.advantages(REWARDS), torch.tensor([[0.5, -0.5, -0.5, 0.5], [0.0] * 4]))
    assert torch.allclose(objective.token_weights(TOKENS, TOTALS), torch.full((2, 2), 1 / 32))


def test_dapo_clips_higher_above_and_takes_the_mean_of_all_tokens():
    objective = DAPO()
    old = torch.tensor([[0.5, 0.5, 0.5]]).log()
    now = torch.tensor([[0.63, 0.65, 0.3]]).log()  # ratios 1.26, 1.3, 0.6
    terms, found, logged = gradient(objective, now, old, [1.0])
    assert torch.allclose(terms, torch.tensor([[1.26, 1.28, 0.6]]))
    assert torch.allclose(found, torch.tensor([[1.26, 0.0, 0.6]]))
    assert logged["clip_fraction"].tolist() == [[False, True, False]]
    assert torch.allclose(objective.token_weights(TOKENS, TOTALS), torch.full((2, 2), 0.1))


def test_rloo_takes_the_mean_of_the_others_for_its_baseline_and_sums_a_completion():
    objective = RLOO()
    assert torch.allclose(objective.advantages(REWARDS), torch.tensor([[2 / 3, -2 / 3, -2 / 3, 2 / 3], [0.0] * 4]))
    assert not objective.advantages(torch.tensor([[1.0]])).any()  # a group of one has no baseline
    now = torch.tensor([[-1.0, -2.0]])
    terms, found, _ = gradient(objective, now, torch.full((1, 2), 7.0), [-0.5], torch.tensor([[True, False]]))
    assert torch.equal(terms, torch.tensor([[0.5, 0.0]]))
    assert torch.equal(found, torch.tensor([[-0.5, 0.0]]))
    assert torch.allclose(objective.token_weights(TOKENS, TOTALS), torch.full((2, 2), 0.25))


def test_cispo_clips_the_weight_and_every_token_has_a_gradient():
    objective = CISPO(clip_radius_above=0.2)
    now, old = torch.tensor([[-1.0, -2.0, -3.0]]), torch.tensor([[-2.0, -2.0, -2.0]])
    terms, found, logged = gradient(objective, now, old, [0.5])
    assert torch.allclose(found, torch.tensor([[0.5 * 1.2, 0.5, 0.5 * math.exp(-1)]]))
    assert torch.allclose(terms, found * now)
    assert logged["clip_fraction"].tolist() == [[True, False, False]]
    assert torch.allclose(objective.token_weights(TOKENS, TOTALS), torch.full((2, 2), 0.1))


def test_gspo_weighs_a_completion_by_the_geometric_mean_of_its_ratios():
    """Completions of 3 and 2 tokens: the first inside the interval, the second above it."""
    objective = GSPO(clip_radius=0.1, clip_radius_above=0.2)
    now = torch.tensor([[-1.0, -2.0, -1.5], [-1.0, -1.0, 7.0]])
    old = torch.tensor([[-1.1, -2.0, -1.45], [-1.5, -1.5, math.inf]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    terms, found, logged = gradient(objective, now, old, [0.7, 0.4], mask)
    ratio = math.exp((0.1 - 0.05) / 3)
    weights = objective.token_weights(torch.tensor([[3, 2]]), StepTotals(1, 5, 2, 9))
    assert float((terms * weights[0][:, None]).sum()) == pytest.approx((ratio * 0.7 + 1.2 * 0.4) / 2)
    assert torch.allclose(found * weights[0][:, None], torch.tensor([[ratio * 0.7 / 6] * 3, [0.0] * 3]))
    assert logged["clip_fraction"].tolist() == [[False] * 3, [True, True, False]]
    with pytest.raises(ValueError, match="sampler_weight_cap weighs tokens, but GSPO weighs whole completions"):
        GSPO(sampler_weight_cap=2.0)


def test_luffy_shapes_the_demonstration_s_probability():
    objective = LUFFY(gamma=0.1, clip_radius=0.2)
    now = torch.tensor([[0.6, 0.5], [0.3, 0.9]]).log()
    old = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log()  # of the demonstration it is not used
    demonstration = torch.tensor([False, True])
    terms, found, logged = gradient(objective, now, old, [-1.0, 2.0], demonstration=demonstration)
    assert torch.allclose(terms, torch.tensor([[-1.2, -1.0], [2 * 0.3 / 0.4, 2 * 0.9]]))
    # d/d log p of p / (p + 0.1) is 0.1 p / (p + 0.1)^2
    assert torch.allclose(found[1], torch.tensor([2 * 0.03 / 0.16, 2 * 0.09]))
    assert not logged["clip_fraction"][1].any()
    # the demonstration takes part in eq. 4: of rewards 0, 0, 0, 1 it alone is above the mean
    advantages = objective.advantages(torch.tensor([[0.0, 0.0, 0.0, 1.0]]))
    assert torch.allclose(advantages, torch.tensor([[-1.0, -1.0, -1.0, 3.0]]) / math.sqrt(3), atol=1e-5)


@pytest.mark.parametrize(("phi", "weights"), [(True, [0.25, 0.09]), (False, [1.0, 1.0])])
def test_chord_adds_the_sft_term(phi, weights):
    objective = CHORD(mu_peak=0.5, mu_valley=0.1, mu_decay_steps=10, phi=phi, clip_radius=0.2)
    now = torch.tensor([[0.6, 0.5], [0.5, 0.9]]).log()
    old = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log()
    demonstration = torch.tensor([False, True])
    terms, found, logged = gradient(objective, now, old, [-1.0, 1.0], demonstration=demonstration)
    assert torch.allclose(terms[0], torch.tensor([-1.2, -1.0]))
    assert torch.allclose(terms[1], torch.tensor(weights) * now[1])
    assert torch.allclose(found[1], torch.tensor(weights))  # phi has no gradient
    assert not logged["clip_fraction"][1].any()
    # the demonstration takes no part in eq. 4
    advantages = objective.advantages(torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]))
    assert torch.allclose(advantages, torch.tensor([[1.0, -1.0, 1.0], [0.0, 0.0, 1.0]]), atol=1e-5)


def test_chord_s_mu_falls_along_a_cosine():
    objective = CHORD(mu_peak=0.5, mu_valley=0.1, mu_decay_steps=10)
    assert [objective.mu(step) for step in (0, 5, 10, 99)] == pytest.approx([0.5, 0.3, 0.1, 0.1])
    tokens = torch.tensor([[3, 1, 5], [2, 4, 5]])
    totals = StepTotals(groups=2, tokens=20, samples=3, max_new_tokens=8, step=5, demonstration_tokens=10)
    found = objective.token_weights(tokens, totals)
    assert torch.allclose(found[:, :2], 0.7 * torch.tensor([[1 / 8, 1 / 8], [1 / 12, 1 / 12]]))
    assert torch.allclose(found[:, 2], torch.full((2,), 0.3 / 10))
    whole = CHORD(normaliser="batch").token_weights(tokens, totals)[0, 0]
    assert float(whole) == pytest.approx((1 - CHORD().mu(5)) / 10)  # over the 10 sampled tokens


def test_logit_fusion_s_ratio_is_an_importance_weight():
    """The policy gives a token 0.3 that the mixture drew with 0.6, and one 0.3 that it drew with 0.1."""
    objective = LogitFusion(clip_radius=0.2)
    assert objective.optimises_policy
    now, old = torch.tensor([[0.3, 0.3]]).log(), torch.tensor([[0.6, 0.1]]).log()
    terms, found, _ = gradient(objective, now, old, [1.0])
    assert torch.allclose(terms, torch.tensor([[0.5, 1.2]]))
    assert torch.allclose(found, torch.tensor([[0.5, 0.0]]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CISPO(clip_radius_above=0.0), "objective.clip_radius_above must be positive, not 0.0"),
        (lambda: GSPO(clip_radius=1.0), "objective.clip_radius must lie between 0 and 1, not 1.0"),
        (lambda: LUFFY(gamma=0.0), "objective.gamma must be positive, not 0.0"),
        (lambda: LUFFY(beta=0.1), "objective.beta must be 0 for LUFFY, not 0.1"),
        (lambda: CHORD(mu_peak=1.5), r"objective.mu_peak must lie in \[0, 1\], not 1.5"),
        (lambda: CHORD(mu_decay_steps=0), "objective.mu_decay_steps must be at least 1, not 0"),
        (lambda: CHORD(beta=0.1), "objective.beta must be 0 for CHORD, not 0.1"),
        (lambda: RLOO(mini_batches=0), "objective.mini_batches must be at least 1, not 0"),
        (lambda: RLOO(entropy_bonus=-0.1), "objective.entropy_bonus must be at least 0, not -0.1"),
    ],
)
def test_a_wrong_setting_names_itself(make, message):
    with pytest.raises(ValueError, match=message):
        make()
