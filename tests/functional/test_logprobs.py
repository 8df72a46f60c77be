import pytest
import torch

from lmix.functional import entropies, linear_entropies, linear_log_probs, token_log_probs, tokenwise


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_tokenwise_equals_autograd_in_value_and_gradient(chunk):
    torch.manual_seed(0)
    head, other = torch.randn(11, 6, dtype=torch.float64), torch.randn(8, 6, dtype=torch.float64)
    targets = torch.randint(0, 11, (8,))
    hidden = torch.randn(8, 6, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(8)

    def function(h, o, t):
        return token_log_probs((0.7 * h + 0.3 * o) @ head.T, t)

    fast = tokenwise(function, hidden, other, targets, chunk=chunk)
    slow = function(hidden, other, targets)
    assert torch.allclose(fast, slow, atol=1e-6)
    (found,) = torch.autograd.grad((fast * upstream).sum(), hidden)
    (expected,) = torch.autograd.grad((slow * upstream).sum(), hidden)
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("biased", [True, False])
def test_linear_log_probs_equal_autograd_in_value_and_gradient(chunk, biased):
    torch.manual_seed(0)
    weight, bias = torch.randn(11, 6, requires_grad=True), torch.randn(11) * 50 if biased else None
    tokens = torch.randint(0, 11, (8,))
    hidden = torch.randn(8, 6, requires_grad=True)
    upstream = torch.randn(8)
    fast = linear_log_probs(hidden, weight, bias, tokens, chunk)
    slow = token_log_probs(torch.nn.functional.linear(hidden, weight, bias), tokens)
    assert torch.allclose(fast, slow, atol=1e-5)
    (found,) = torch.autograd.grad((fast * upstream).sum(), hidden)
    (expected,) = torch.autograd.grad((slow * upstream).sum(), hidden)
    assert torch.allclose(found, expected, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(linear_log_probs(hidden, weight, bias, tokens, chunk), fast)
    assert linear_log_probs(hidden[:0], weight, bias, tokens[:0]).shape == (0,)


@pytest.mark.parametrize("lead", [0.0, 4.0, 12.0])
def test_linear_log_probs_in_bfloat16_keep_the_gradient_of_a_confident_token(lead):
    """The other tokens' share of the gradient is 1 - p; it must not be lost beside the chosen one's."""
    torch.manual_seed(0)
    weight, hidden = torch.randn(50, 16), torch.randn(3, 16)
    weight[7] += lead * hidden.mean(0)
    tokens = torch.full((3,), 7)
    slow_hidden, fast_hidden = (h.requires_grad_() for h in (hidden.bfloat16().float(), hidden.bfloat16()))
    low = weight.bfloat16()
    slow = token_log_probs(slow_hidden @ low.float().T, tokens)
    fast = linear_log_probs(fast_hidden, low, None, tokens)
    (expected,) = torch.autograd.grad(slow.sum(), slow_hidden)
    (found,) = torch.autograd.grad(fast.sum(), fast_hidden)
    assert (found.float() - expected).norm() <= 0.1 * expected.norm()  # logits are rounded to bfloat16 themselves


def test_tokenwise_gives_nothing_else_a_gradient():
    head = torch.randn(5, 3, requires_grad=True)
    hidden = torch.randn(4, 3, requires_grad=True)
    tokenwise(lambda h: token_log_probs(h @ head.T, torch.zeros(len(h), dtype=torch.long)), hidden).sum().backward()
    assert head.grad is None
    assert hidden.grad is not None


def test_tokenwise_without_gradient_and_without_tokens():
    hidden = torch.randn(4, 3, requires_grad=True)
    with torch.no_grad():
        assert not tokenwise(lambda h: h.sum(-1), hidden).requires_grad
    assert tokenwise(lambda h: h.sum(-1), torch.empty(0, 3)).shape == (0,)


def test_functional_imports_torch_and_nothing_else():
    import ast
    from pathlib import Path

    import lmix.functional

    for path in Path(lmix.functional.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert {name.split(".")[0] for name in names} <= {"torch", "math", "typing", "collections", "lmix"}, path


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("beside", [False, True])
def test_linear_entropies_equal_autograd_in_value_and_gradient(chunk, beside):
    torch.manual_seed(0)
    weight, bias = torch.randn(11, 6), torch.randn(11)
    frozen = 2.0 * torch.randn(8, 11) if beside else torch.zeros(8, 11)
    hidden = torch.randn(8, 6, requires_grad=True)
    upstream = torch.randn(8)
    fast = linear_entropies(hidden, weight, bias, chunk, (lambda part: frozen[part]) if beside else None)
    p = (hidden @ weight.T + bias + frozen).softmax(-1)
    slow = -(p * p.log()).sum(-1)
    assert torch.allclose(fast, slow, atol=1e-5)
    (found,) = torch.autograd.grad((fast * upstream).sum(), hidden)
    (expected,) = torch.autograd.grad((slow * upstream).sum(), hidden)
    assert torch.allclose(found, expected, atol=1e-5)


def test_entropies_of_tokens_without_probability():
    logits = torch.tensor([[0.0, 0.0, -torch.inf], [0.0, -torch.inf, -torch.inf]], requires_grad=True)
    found = entropies(logits)
    assert torch.allclose(found, torch.tensor([2.0, 1.0]).log())
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert torch.isfinite(gradient).all()
