import pytest
import torch

from lmix.model.linear import NARROW, add_low_rank, linear
from tests.conftest import close


@pytest.mark.parametrize("rows", [1, 7, NARROW, NARROW + 1])
@pytest.mark.parametrize("biased", [True, False])
def test_a_product_from_the_other_side_is_the_same(rows, biased):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(rows, 1, 24), torch.randn(40, 24), torch.randn(40) if biased else None
    expected = torch.nn.functional.linear(x, weight, bias)
    with torch.no_grad():
        found = linear(x, weight, bias)
        assert close(linear(x.expand(-1, 3, -1), weight, bias)[:, 1:2], expected)
    assert found.is_contiguous()
    assert close(found, expected)


def test_products_have_gradients_and_low_rank_ones_too():
    torch.manual_seed(0)
    x, weight, a, b = (torch.randn(*s, requires_grad=True) for s in ((5, 8), (6, 8), (2, 8), (6, 2)))
    expected = x @ weight.T + 0.5 * (x @ a.T) @ b.T
    found = add_low_rank(linear(x, weight), x, a, b, 0.5)
    assert close(found, expected)
    slow, fast = (torch.autograd.grad(y.square().sum(), (x, a, b)) for y in (expected, found))
    for one, other in zip(slow, fast, strict=True):
        assert close(one, other)
    with torch.no_grad():
        assert close(add_low_rank(linear(x, weight), x, a, b, 0.5), expected)
