import torch

from lmix.functional import low_rank_factors, low_rank_product


def test_a_products_nearest_matrix_is_that_of_the_matrix():
    """Without forming it; also where the inner width is more than the matrix has rows."""
    torch.manual_seed(0)
    for rows, inner, columns, rank in ((9, 5, 12, 3), (4, 6, 12, 2), (9, 5, 12, 5)):
        b, a = torch.randn(rows, inner).double(), torch.randn(inner, columns).double()
        matrix = b @ a
        slow_b, slow_a = low_rank_factors(matrix, rank)
        fast_b, fast_a, left = low_rank_product(b, a, rank)
        assert fast_b.shape == (rows, rank)
        assert fast_a.shape == (rank, columns)
        assert torch.allclose(fast_b @ fast_a, slow_b @ slow_a, atol=1e-10)
        assert abs(left - float((matrix - slow_b @ slow_a).square().sum())) < 1e-9
