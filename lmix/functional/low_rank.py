"""Best low-rank approximation of a matrix, or of a product of two factors."""

import torch
from torch import Tensor


def low_rank_factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors of the best rank-r approximation of a matrix in the Frobenius norm (Eckart and Young, 1936).

    Args:
        matrix: `[D_out, D_in]`.
        rank: r; if the matrix has fewer rows or columns, the factors are padded with zeros.

    Returns:
        B `[D_out, r]` and A `[r, D_in]`, whose product is the approximation. Each is scaled by the square roots of the
        singular values.
    """
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    roots = values[:rank].sqrt()
    missing = rank - len(roots)
    b = torch.nn.functional.pad(left[:, :rank] * roots, (0, missing))
    a = torch.nn.functional.pad(roots[:, None] * right[:rank], (0, 0, 0, missing))
    return b, a


def low_rank_product(b: Tensor, a: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Factors of the best rank-r approximation of `b a`, without forming that product.

    With the QR decompositions `b = Q S` and `a^T = P T`, the singular values of `b a` are those of the small matrix
    `S T^T`.

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
