"""Divergences of a student from a teacher at each token over the whole vocabulary, without `[B, T, V]` in memory.

p is the student's distribution, q the teacher's. Only the student gets a gradient.

    reverse_kl   KL(p || q) = sum_v p (log p - log q)                          MiniLLM, arXiv 2306.08543
    forward_kl   KL(q || p) = sum_v q (log q - log p)
    jensen       b KL(q || m) + (1 - b) KL(p || m), m = b q + (1 - b) p        GKD, arXiv 2306.13649, eq. 1

Legend: N tokens, n of them in a chunk, H hidden size, V vocabulary.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lmix.functional.logprobs import linear_tokenwise

DivergenceKind = Literal["reverse_kl", "forward_kl", "jensen"]


class Divergence(NamedTuple):
    """Which divergence. `blend` is b of the Jensen-Shannon divergence, in (0, 1); the other kinds ignore it."""

    kind: DivergenceKind = "reverse_kl"
    blend: float = 0.5


def divergences(student: Tensor, teacher: Tensor, divergence: Divergence) -> Tensor:
    """The divergence of softmax(student) from softmax(teacher) in nats, `[..., V]`, `[..., V]` -> `[...]`, float32."""
    log_p, log_q = student.float().log_softmax(-1), teacher.float().log_softmax(-1)
    if divergence.kind == "reverse_kl":
        return _kl(log_p, log_q)
    if divergence.kind == "forward_kl":
        return _kl(log_q, log_p)
    log_m = _log_blend(log_p, log_q, divergence.blend)
    return divergence.blend * _kl(log_q, log_m) + (1.0 - divergence.blend) * _kl(log_p, log_m)


def linear_divergences(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    teacher: Callable[[slice], Tensor],
    divergence: Divergence,
    chunk: int = 512,
) -> Tensor:
    """`divergences` of softmax(`hidden weight^T + bias`) from softmax(`teacher`), a chunk of tokens at a time.

    The gradient with respect to the student's logits z is computed in closed form, without autograd. Its product with
    `weight` is the gradient with respect to the hidden states.

        reverse_kl   d / dz = p (log p - log q - KL)
        forward_kl   d / dz = p - q
        jensen       d / dz = (1 - b) p (log p - log m - KL(p || m))

    Args:
        hidden: `[N, H]` of the student, may need a gradient.
        weight: `[V, H]`, frozen.
        bias: `[V]`, frozen, or None.
        teacher: maps a slice of the tokens to frozen logits `[n, V]`; called once per chunk, without gradient.
        divergence: which divergence.
        chunk: tokens whose logits exist at once.

    Returns:
        `[N]`, float32.
    """

    def of_part(part: slice, student_nV: Tensor) -> tuple[Tensor, Tensor]:
        log_p = _finite(student_nV.log_softmax(-1))
        log_q = _finite(teacher(part).float().log_softmax(-1))
        p = log_p.exp()
        if divergence.kind == "forward_kl":
            q = log_q.exp()
            return (q * (log_q - log_p)).sum(-1), p.sub_(q)
        b = divergence.blend
        log_to = log_q if divergence.kind == "reverse_kl" else _log_blend(log_p, log_q, b)
        slope = log_p.sub_(log_to)
        value_n1 = (p * slope).sum(-1, keepdim=True)
        gradient = p.mul_(slope.sub_(value_n1))
        if divergence.kind == "reverse_kl":
            return value_n1.squeeze(-1), gradient
        other_n = (log_q.exp() * (log_q - log_to)).sum(-1)
        return b * other_n + (1.0 - b) * value_n1.squeeze(-1), gradient.mul_(1.0 - b)

    return linear_tokenwise(of_part, hidden, weight, bias, chunk)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) from log-probabilities."""
    log_p, log_q = _finite(log_p), _finite(log_q)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _log_blend(log_p: Tensor, log_q: Tensor, blend: float) -> Tensor:
    """log (b q + (1 - b) p)."""
    return torch.logaddexp(log_q + math.log(blend), log_p + math.log1p(-blend))


def _finite(log_p: Tensor) -> Tensor:
    """Clamp -inf, so that a token of probability 0 adds 0 and not 0 * -inf = NaN."""
    return log_p.clamp(min=torch.finfo(torch.float32).min / 4)
