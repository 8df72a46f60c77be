"""Divergences from a teacher: closed forms against autograd of the written-out sums, and what they hold at once."""

import math

import pytest
import torch

from lmix.functional import Divergence, divergences, linear_divergences

KINDS = [Divergence("reverse_kl"), Divergence("forward_kl"), Divergence("jensen", 0.5), Divergence("jensen", 0.1)]


def written_out(student, teacher, divergence):
    """The sums of the definitions over all tokens of the vocabulary, in float64."""
    p, q = student.double().softmax(-1), teacher.double().softmax(-1)
    if divergence.kind == "reverse_kl":
        return (p * (p.log() - q.log())).sum(-1)
    if divergence.kind == "forward_kl":
        return (q * (q.log() - p.log())).sum(-1)
    m = divergence.blend * q + (1 - divergence.blend) * p
    of_q, of_p = (q * (q / m).log()).sum(-1), (p * (p / m).log()).sum(-1)
    return divergence.blend * of_q + (1 - divergence.blend) * of_p


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("divergence", KINDS, ids=str)
@pytest.mark.parametrize("biased", [True, False])
def test_values_and_gradients_equal_autograd_of_the_written_out_sum(chunk, divergence, biased):
    torch.manual_seed(0)
    weight, bias = torch.randn(11, 6), torch.randn(11) if biased else None
    teacher, upstream = 2.0 * torch.randn(8, 11), torch.randn(8)
    hidden = torch.randn(8, 6, requires_grad=True)
    asked = []

    def frozen(part):
        asked.append(len(teacher[part]))
        return teacher[part]

    logits = torch.nn.functional.linear(hidden, weight, bias)
    slow = written_out(logits, teacher, divergence)
    fast = linear_divergences(hidden, weight, bias, frozen, divergence, chunk)
    assert torch.allclose(fast.double(), slow, atol=1e-5)
    assert torch.allclose(divergences(logits, teacher, divergence).double(), slow, atol=1e-5)
    assert max(asked) <= chunk
    assert sum(asked) == 8
    (expected,) = torch.autograd.grad((slow * upstream).sum(), hidden, retain_graph=True)
    for found in (fast, divergences(logits, teacher, divergence)):
        (gradient,) = torch.autograd.grad((found * upstream).sum(), hidden, retain_graph=True)
        assert torch.allclose(gradient, expected, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(linear_divergences(hidden, weight, bias, frozen, divergence, chunk), fast)
        assert linear_divergences(hidden[:0], weight, bias, frozen, divergence).shape == (0,)


def test_two_tokens_by_hand():
    """p = (3/4, 1/4) and q = (1/2, 1/2)."""
    student, teacher = torch.tensor([[3.0, 1.0]]).log(), torch.zeros(1, 2)
    reverse = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    forward = 0.5 * math.log(2 / 3) + 0.5 * math.log(2)
    # m = (5/8, 3/8)
    of_p = 0.75 * math.log(6 / 5) + 0.25 * math.log(2 / 3)
    of_q = 0.5 * math.log(4 / 5) + 0.5 * math.log(4 / 3)
    for divergence, expected in zip(KINDS[:3], (reverse, forward, 0.5 * (of_p + of_q)), strict=True):
        assert divergences(student, teacher, divergence).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("divergence", KINDS, ids=str)
def test_equal_distributions_have_no_divergence_and_no_gradient(divergence):
    weight, hidden = torch.randn(9, 4), torch.randn(5, 4, requires_grad=True)
    teacher = (hidden @ weight.T).detach() + 3.0  # a constant changes no distribution
    found = linear_divergences(hidden, weight, None, lambda part: teacher[part], divergence)
    assert torch.allclose(found, torch.zeros(5), atol=1e-6)
    (gradient,) = torch.autograd.grad(found.sum(), hidden)
    assert gradient.abs().max() < 1e-5


def test_tokens_that_the_teacher_never_draws_leave_values_and_gradients_finite():
    weight, hidden = torch.randn(5, 4), torch.randn(3, 4, requires_grad=True)
    teacher = torch.randn(3, 5).index_fill(1, torch.tensor([2]), -torch.inf)
    found = linear_divergences(hidden, weight, None, lambda part: teacher[part], Divergence("forward_kl"))
    p, q = (hidden @ weight.T).softmax(-1), teacher.softmax(-1)
    others = [0, 1, 3, 4]
    expected = (q[:, others] * (q[:, others] / p[:, others]).log()).sum(-1)
    assert torch.allclose(found, expected, atol=1e-5)
    (gradient,) = torch.autograd.grad(found.sum(), hidden)
    assert torch.isfinite(gradient).all()


class LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
    """Numbers of the largest tensor that any operation gives, and of all that exist at once at most."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes() // tensor.element_size())
        return out


@pytest.mark.parametrize("divergence", KINDS[:3], ids=str)
def test_memory_grows_with_tokens_and_not_with_tokens_times_vocabulary(divergence):
    """No tensor of the passes is larger than a chunk's logits, or all tokens' hidden states."""
    vocabulary, width, chunk = 500, 8, 4
    weight = torch.randn(vocabulary, width)
    largest = {}
    for count in (32, 512):
        hidden, others = torch.randn(count, width, requires_grad=True), torch.randn(count, width)
        with LargestTensor() as watched:
            found = linear_divergences(
                hidden, weight, None, lambda part, others=others: others[part] @ weight.T, divergence, chunk
            )
            torch.autograd.grad(found.sum(), hidden)
        largest[count] = watched.largest
        assert watched.largest <= max(chunk * vocabulary, count * width, vocabulary * width)
    assert largest[512] <= 2 * largest[32]  # where all logits at once would be 16 times as many
