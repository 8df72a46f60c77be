"""Log-probabilities of chosen tokens without holding `[B, T, V]`."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def token_log_probs(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-softmax of `logits` at `tokens`, in float32: `[..., V]`, `[...]` -> `[...]`."""
    logits = logits.float()
    chosen = logits.gather(-1, tokens[..., None]).squeeze(-1)
    return chosen - logits.logsumexp(-1)


def tokenwise(function: Callable[..., Tensor], hidden: Tensor, *others: Tensor, chunk: int = 1024) -> Tensor:
    """Apply `function` to tokens a chunk at a time, and differentiate it by the hidden states alone.

    A token's log-probability depends on no other token's hidden state, so its whole gradient is one vector of width H.
    That vector is computed while the chunk's logits exist; the backward pass only scales it. So nothing of width V
    outlives a chunk, nothing is computed twice, and the frozen head gets no weight gradient.

    Args:
        function: `(hidden [n, H], *others [n, ...]) -> [n]`; token i of the result must depend on row i alone. Anything
            else that it uses (the head's weight) gets no gradient.
        hidden: `[N, H]`, may need a gradient.
        others: `[N, ...]` each, never differentiated.
        chunk: tokens that are worked on at once.

    Returns:
        `[N]`, float32.
    """
    wants_gradient = hidden.requires_grad and torch.is_grad_enabled()
    return _Tokenwise.apply(function, chunk, wants_gradient, hidden, *others)  # pyright: ignore[reportReturnType]


class _Tokenwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, function, chunk, wants_gradient, hidden, *others):  # pyright: ignore[reportIncompatibleMethodOverride]
        values = hidden.new_empty(hidden.shape[0], dtype=torch.float32)
        gradients = torch.empty_like(hidden) if wants_gradient else None
        for start in range(0, hidden.shape[0], chunk):
            part = slice(start, start + chunk)
            with torch.set_grad_enabled(wants_gradient):
                leaf = hidden[part].detach().requires_grad_(wants_gradient)
                value = function(leaf, *(other[part] for other in others))
                if gradients is not None:
                    (gradients[part],) = torch.autograd.grad(value.sum(), leaf)
            values[part] = value.detach()
        ctx.save_for_backward(gradients)
        ctx.count = len(others)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_values):  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradients,) = ctx.saved_tensors
        grad_hidden = None if gradients is None else gradients * grad_values[:, None].to(gradients.dtype)
        return None, None, None, grad_hidden, *([None] * ctx.count)
