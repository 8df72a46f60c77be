"""The nearest matrix of low rank, of a matrix or of a product of factors."""

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


def low_rank_product(b: Tensor, a: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """The factors of the matrix of a rank that is nearest to `b a`, which is never formed.

    The product of orthogonal factors' cores has its singular values: `b = Q S` and `a = T^T P^T`, so those of `b a` are
    those of `S T^T`, a square of the inner width.

    Args:
        b: `[D_out, R]`.
        a: `[R, D_in]`.
        rank: r, at most R.

    Returns:
        B `[D_out, r]` and A `[r, D_in]`, and the squared Frobenius norm of `b a - B A`.
    """
    left, core_b = torch.linalg.qr(b)
    right, core_a = torch.linalg.qr(a.mT)
    core = core_b @ core_a.mT
    inner_b, inner_a = low_rank_factors(core, rank)
    return left @ inner_b, inner_a @ right.mT, float((core - inner_b @ inner_a).square().sum())
