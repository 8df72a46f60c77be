import pytest
import torch

from lmix.rollout.randomness import row_keys, uniforms
from lmix.rollout.sampling import greedy, inverse_cdf


@pytest.mark.parametrize("width", [1, 5, 512, 513, 2000])
def test_inverse_cdf_equals_a_search_in_the_whole_cumulative_sum(width):
    generator = torch.Generator().manual_seed(width)
    logits = 3 * torch.randn(200, width, generator=generator)
    uniform = torch.rand(200, dtype=torch.float64, generator=generator)
    tokens, log_probs = inverse_cdf(logits, uniform)
    cdf = logits.double().softmax(-1).cumsum(-1)
    expected = torch.searchsorted(cdf / cdf[:, -1:], uniform[:, None], right=True).squeeze(1)
    # a uniform number within float32's rounding of a border may fall on either side
    near = ((cdf - uniform[:, None]).abs() < 1e-6).any(-1)
    assert torch.equal(tokens[~near], expected[~near])
    assert near.float().mean() < 0.1
    assert torch.allclose(log_probs, logits.log_softmax(-1).gather(1, tokens[:, None]).squeeze(1), atol=1e-5)


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1.0 - 2.0**-52])
def test_a_token_of_probability_zero_is_never_drawn(uniform):
    logits = torch.full((1, 1500), -torch.inf)
    logits[0, [3, 700, 1100]] = torch.tensor([0.0, 1.0, -80.0])
    tokens, log_probs = inverse_cdf(logits, torch.tensor([uniform], dtype=torch.float64))
    assert tokens.item() in (3, 700, 1100)
    assert torch.isfinite(log_probs).all()


def test_greedy():
    logits = torch.tensor([[0.0, 2.0, 1.0]])
    tokens, log_probs = greedy(logits)
    assert tokens.tolist() == [1]
    assert torch.allclose(log_probs, logits.log_softmax(-1)[:, 1])


def test_uniform_numbers_are_uniform_and_independent_of_their_neighbours():
    from scipy.stats import kstest

    rows = torch.arange(1000)
    keys = row_keys(0, 3, rows // 8, rows % 8)
    grid = torch.stack([uniforms(keys, torch.full_like(rows, t)) for t in range(50)])
    assert grid.min() >= 0
    assert grid.max() < 1
    assert kstest(grid.flatten().numpy(), "uniform").pvalue > 0.01
    for a, b in ((grid[1:], grid[:-1]), (grid[:, 1:], grid[:, :-1])):
        assert abs(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) < 0.02


def test_every_field_of_the_key_counts():
    one = torch.tensor([1])
    keys = [
        row_keys(*f[:2], one * f[2], one * f[3]).item()
        for f in ((0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1))
    ]
    assert len(set(keys)) == 5


def test_the_generator_is_pinned():
    """A change here changes every run's tokens: it belongs in the CHANGELOG."""
    keys = row_keys(7, 11, torch.tensor([13]), torch.tensor([17]))
    assert keys.item() == PINNED_KEY
    assert uniforms(keys, torch.tensor([19])).item() == PINNED_UNIFORM


PINNED_KEY = 8667057917018277804
PINNED_UNIFORM = 0.6157212698067289
