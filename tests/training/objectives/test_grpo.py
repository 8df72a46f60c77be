"""GRPO's weights and terms by hand."""

import pytest
import torch

from lmix.training.objectives import GRPO, Scored, StepTotals

TOKENS = torch.tensor([[3, 1], [2, 4]])


def totals(**changes) -> StepTotals:
    return StepTotals(**{"groups": 2, "tokens": 10, "samples": 2, "max_new_tokens": 8, **changes})


@pytest.mark.parametrize(
    ("normaliser", "expected"),
    [
        ("group", [[1 / 8, 1 / 8], [1 / 12, 1 / 12]]),
        ("batch", [[1 / 10] * 2] * 2),
        ("response", [[1 / 12, 1 / 4], [1 / 8, 1 / 16]]),
        ("constant", [[1 / 32] * 2] * 2),  # 8 tokens at most, 4 completions
    ],
)
def test_normalisers_by_hand(normaliser, expected):
    weights = GRPO(normaliser=normaliser).token_weights(TOKENS, totals())
    assert torch.allclose(weights, torch.tensor(expected))
    # another rank has as many groups and tokens: the mean is over all of them
    both = GRPO(normaliser=normaliser).token_weights(TOKENS, totals(groups=4, tokens=20))
    assert torch.allclose(both, torch.tensor(expected) / 2)
    # a rank without a prompt
    none = GRPO(normaliser=normaliser).token_weights(TOKENS[:0], totals())
    assert none.shape == (0, 2)


def test_terms_and_what_is_logged_by_hand():
    old = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log()
    now = torch.tensor([[0.75, 0.5], [0.25, 0.9]]).log()
    mask = torch.tensor([[True, True], [True, False]])
    scored = Scored(now, old, torch.tensor([1.0, -2.0]), mask, None)
    terms, logged = GRPO(clip_radius=0.2).terms(scored)
    assert torch.allclose(terms, torch.tensor([[1.2, 1.0], [-1.6, 0.0]]))
    assert logged["clip_fraction"].tolist() == [[True, False], [True, False]]
    assert set(logged) == {"clip_fraction"}


def test_the_kl_is_taken_from_the_terms():
    log_probs = torch.tensor([[0.5, 0.5]]).log()
    reference = torch.tensor([[0.25, 0.5]]).log()
    mask = torch.tensor([[True, False]])
    objective = GRPO(beta=0.5)
    assert objective.needs_reference
    terms, logged = objective.terms(Scored(log_probs, log_probs, torch.tensor([0.0]), mask, reference))
    k3 = 0.5 - 1 + 0.6931472
    assert torch.allclose(terms, torch.tensor([[-0.5 * k3, 0.0]]))
    assert torch.allclose(logged["kl"], torch.tensor([[k3, 0.0]]))
