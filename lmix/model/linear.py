"""Matmuls with frozen weights and with LoRA factors. Legend: N rows, D_in and D_out features, r LoRA's rank."""

import torch
from torch import Tensor, nn

NARROW = 256
"""Up to this many rows a CPU computes the transposed float32 matmul faster (measured: docs/performance.md)."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x W^T + b`, for `x [..., D_in]` and `W [D_out, D_in]`: `[..., D_out]`.

    On a CPU, without gradient, a few float32 rows are computed as `(W x^T)^T`.
    """
    if torch.is_grad_enabled() or x.device.type != "cpu" or x.dtype != torch.float32:
        return nn.functional.linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    if len(rows) > NARROW:
        return nn.functional.linear(x, weight, bias)
    out = torch.mm(weight, rows.t()) if bias is None else torch.addmm(bias[:, None], weight, rows.t())
    return out.t().contiguous().view(*x.shape[:-1], -1)  # torch's attention is slow on strided heads


def add_low_rank(out: Tensor, x: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """`out + scaling (x A^T) B^T`, for `out [N, D_out]`, `x [N, D_in]`, `A [r, D_in]`, `B [D_out, r]`.

    Without gradient, `out` is changed in place.
    """
    inner = nn.functional.linear(x, a)
    if torch.is_grad_enabled():
        return torch.addmm(out, inner, b.t(), alpha=scaling)
    return out.addmm_(inner, b.t(), alpha=scaling)
