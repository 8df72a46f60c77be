"""The nearest matrix of low rank."""

import torch
from torch import Tensor


def low_rank_factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The factors of the matrix of a rank that is nearest to a given one in Frobenius's norm (Eckart and Young, 1936).

    Args:
        matrix: `[D_out, D_in]`.
        rank: r; where the matrix has fewer rows or columns, the rest of the factors is zero.

    Returns:
        B `[D_out, r]` and A `[r, D_in]`, whose product is it; each takes the root of the singular values.
    """
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    roots = values[:rank].sqrt()
    missing = rank - len(roots)
    b = torch.nn.functional.pad(left[:, :rank] * roots, (0, missing))
    a = torch.nn.functional.pad(roots[:, None] * right[:rank], (0, 0, 0, missing))
    return b, a
