"""Log-probabilities of chosen tokens, and entropies, without `[B, T, V]` in memory."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def token_log_probs(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-softmax of `logits` at `tokens`, in float32: `[..., V]`, `[...]` -> `[...]`."""
    logits = logits.float()
    chosen = logits.gather(-1, tokens[..., None]).squeeze(-1)
    return chosen - logits.logsumexp(-1)


def entropies(logits: Tensor) -> Tensor:
    """Entropy of softmax(logits) in nats, `[..., V]` -> `[...]`, in float32."""
    log_probs = logits.float().log_softmax(-1)
    # a token of probability 0 adds nothing, where 0 * -inf would be NaN
    return -(log_probs.exp() * log_probs.clamp(min=torch.finfo(torch.float32).min)).sum(-1)


def without_tokens(logits: Tensor, tokens: Tensor, rows: Tensor) -> Tensor:
    """Exclude some tokens in some rows: set their logits to -inf.

    The softmax then renormalises over the other tokens, `log p(y) - log(1 - sum of p over tokens)`. Unlike that
    formula, it does not lose precision when the excluded tokens have almost all of the probability.

    Args:
        logits: `[N, V]`.
        tokens: `[E]`, ids of the tokens to exclude; not the whole vocabulary.
        rows: `[N]`, bool: the rows to exclude them in.

    Returns:
        `[N, V]`.
    """
    barred_V = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device).index_fill(0, tokens, True)
    return logits.masked_fill(rows[:, None] & barred_V, -torch.inf)


def tokenwise(function: Callable[..., Tensor], hidden: Tensor, *others: Tensor, chunk: int = 1024) -> Tensor:
    """Apply `function` to tokens a chunk at a time, with a gradient for the hidden states only.

    A token's log-probability depends on no other token's hidden state, so its whole gradient is one vector of width H.
    That vector is computed while the chunk's logits exist; the backward pass only scales it. So nothing of width V
    outlives a chunk, nothing is computed twice, and the frozen head gets no weight gradient.

    Args:
        function: `(hidden [n, H], *others [n, ...]) -> [n]`; token i of the result must depend on row i alone. Anything
            else that it uses (the head's weight) gets no gradient.
        hidden: `[N, H]`, may need a gradient.
        others: `[N, ...]` each, never differentiated.
        chunk: tokens in a chunk.

    Returns:
        `[N]`, float32.
    """

    def work(part: slice, wants_gradient: bool) -> tuple[Tensor, Tensor | None]:
        with torch.set_grad_enabled(wants_gradient):
            leaf = hidden[part].detach().requires_grad_(wants_gradient)
            value = function(leaf, *(other[part] for other in others))
            return value.detach(), torch.autograd.grad(value.sum(), leaf)[0] if wants_gradient else None

    return _Tokenwise.apply(work, chunk, torch.is_grad_enabled(), hidden)  # pyright: ignore[reportReturnType]


def linear_log_probs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    chunk: int = 1024,
    others: Callable[[slice], Tensor] | None = None,
) -> Tensor:
    """Log-softmax of `hidden weight^T + bias + others` at `tokens`, a chunk at a time, in float32.

    The gradient is computed in closed form, without autograd: `d log p(y) / d h = weight[y] - p weight`, where p is the
    softmax of the whole sum. The exponentials overwrite the logits. The frozen head gets no gradient.

    Args:
        hidden: `[N, H]`, may need a gradient.
        weight: `[V, H]`.
        bias: `[V]` or None.
        tokens: `[N]`.
        chunk: tokens whose logits exist at once.
        others: maps a slice of the tokens to frozen logits `[n, V]` to add, such as those of other backbones.

    Returns:
        `[N]`, float32.
    """

    def work(part: slice, wants_gradient: bool) -> tuple[Tensor, Tensor | None]:
        logits_nV = _part_logits(hidden, weight, bias, others, part)
        chosen_n = logits_nV.gather(-1, tokens[part, None]).squeeze(-1)
        top_n1 = logits_nV.amax(-1, keepdim=True)
        weights_nV = logits_nV.sub_(top_n1).exp_()
        total_n1 = weights_nV.sum(-1, keepdim=True)
        value_n = chosen_n - (top_n1 + total_n1.log()).squeeze(-1)
        if not wants_gradient:
            return value_n, None
        # subtract the chosen row before the product: in bfloat16 the difference of two products would lose precision
        weights_nV.scatter_add_(-1, tokens[part, None], -total_n1)
        return value_n, -(weights_nV.to(weight.dtype) @ weight) / total_n1

    return _Tokenwise.apply(work, chunk, torch.is_grad_enabled(), hidden)  # pyright: ignore[reportReturnType]


def linear_entropies(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    chunk: int = 1024,
    others: Callable[[slice], Tensor] | None = None,
) -> Tensor:
    """Entropy of softmax(`hidden weight^T + bias + others`) in nats, a chunk at a time, in float32.

    The gradient is computed in closed form: `d H / d h = -sum_v p_v (log p_v + H) weight_v`. Arguments as in
    `linear_log_probs`.

    Returns:
        `[N]`, float32.
    """

    def work(part: slice, wants_gradient: bool) -> tuple[Tensor, Tensor | None]:
        logits_nV = _part_logits(hidden, weight, bias, others, part)
        log_p_nV = logits_nV.log_softmax(-1).clamp_(min=torch.finfo(torch.float32).min)
        p_nV = log_p_nV.exp()
        value_n = -(p_nV * log_p_nV).sum(-1)
        if not wants_gradient:
            return value_n, None
        return value_n, -(p_nV.mul_(log_p_nV.add_(value_n[:, None])).to(weight.dtype) @ weight)

    return _Tokenwise.apply(work, chunk, torch.is_grad_enabled(), hidden)  # pyright: ignore[reportReturnType]


def linear_tokenwise(
    of_part: Callable[[slice, Tensor], tuple[Tensor, Tensor]],
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    chunk: int = 1024,
) -> Tensor:
    """Apply a function with a closed-form gradient to each token's logits `hidden weight^T + bias`, chunk by chunk.

    Args:
        of_part: `(slice of the tokens, their logits [n, V] float32) -> (values [n], gradient [n, V])`, the gradient
            with respect to the logits; it may overwrite the logits.
        hidden: `[N, H]`, may need a gradient.
        weight: `[V, H]`.
        bias: `[V]` or None.
        chunk: tokens whose logits exist at once.

    Returns:
        `[N]`, float32.
    """

    def work(part: slice, wants_gradient: bool) -> tuple[Tensor, Tensor | None]:
        value_n, gradient_nV = of_part(part, _part_logits(hidden, weight, bias, None, part))
        return value_n, gradient_nV.to(weight.dtype) @ weight if wants_gradient else None

    return _Tokenwise.apply(work, chunk, torch.is_grad_enabled(), hidden)  # pyright: ignore[reportReturnType]


def _part_logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, others: Callable[[slice], Tensor] | None, part: slice
) -> Tensor:
    """`hidden weight^T + bias + others` of a slice of the tokens, float32 `[n, V]`."""
    logits_nV = torch.nn.functional.linear(hidden[part], weight, bias).float()
    return logits_nV if others is None else logits_nV + others(part)


class _Tokenwise(torch.autograd.Function):
    """Runs `work(slice, wants_gradient)` per chunk. It returns values, and gradients for the hidden states or None."""

    @staticmethod
    def forward(ctx, work, chunk, grad_enabled, hidden):  # pyright: ignore[reportIncompatibleMethodOverride]
        wants_gradient = grad_enabled and hidden.requires_grad
        values = hidden.new_empty(hidden.shape[0], dtype=torch.float32)
        gradients = torch.empty_like(hidden) if wants_gradient else None
        for start in range(0, hidden.shape[0], chunk):
            part = slice(start, start + chunk)
            values[part], found = work(part, wants_gradient)
            if gradients is not None:
                gradients[part] = found
        ctx.save_for_backward(gradients)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_values):  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradients,) = ctx.saved_tensors
        grad_hidden = None if gradients is None else gradients * grad_values[:, None].to(gradients.dtype)
        return None, None, None, grad_hidden
