"""How the streams' outputs become one distribution (eq. 1-3, and section 5 for probabilities)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def mix_streams(values_K: Sequence[Tensor], weights_K: Sequence[float | Tensor]) -> Tensor:
    """Logit averaging: the weighted sum of K streams' logits, `sum_k w_k z_k`. Weights (1 - alpha, alpha) give eq. 1.

    The mixed policy is the softmax of the result (eq. 2-3). The LM head is linear, so the same function mixes hidden
    states before the head.

    Weights may be negative and need not sum to one (DExperts, contrastive decoding). A stream of weight zero is left
    out, and a single stream of weight one is returned as it is. A weight may also be a tensor that broadcasts, to mix
    each row differently; its stream is never left out.

    Values below float32 are accumulated in float32 and rounded once: scalar and tensor weights give the same mixture.

    Returns:
        The mixture, in the dtype of the first stream that is not left out.

    Raises:
        ValueError: the numbers of weights and streams differ, or all weights are 0.
    """
    live = _live(values_K, weights_K)
    if len(live) == 1 and isinstance(live[0][1], float) and live[0][1] == 1.0:
        return live[0][0]
    mixed = _accumulable(live[0][0]) * live[0][1]
    for value, weight in live[1:]:
        mixed = mixed + _accumulable(value) * weight
    return mixed.to(live[0][0].dtype)


def mix_streams_log_probs(log_probs_K: Sequence[Tensor], weights_K: Sequence[float | Tensor]) -> Tensor:
    """Probability averaging, section 5: the log of K streams' weighted probabilities, `log sum_k w_k p_k`.

    Weights, accumulation and dtype as in `mix_streams`.

    Raises:
        ValueError: a negative weight, weights that do not sum to 1, or as in `mix_streams`. Tensor weights are not
            checked, because reading them would synchronise with the GPU.
    """
    live = _live(log_probs_K, weights_K)
    numbers = [weight for _, weight in live if isinstance(weight, float)]
    if any(weight < 0 for weight in numbers) or (len(numbers) == len(live) and abs(sum(numbers) - 1.0) > 1e-6):
        raise ValueError(f"weights of probabilities must be at least 0 and sum to 1, not {list(weights_K)}")
    if len(live) == 1:
        return live[0][0]
    logs = [weight.log() if isinstance(weight, Tensor) else math.log(weight) for _, weight in live]
    mixed = _accumulable(live[0][0]) + logs[0]
    for (value, _), log in zip(live[1:], logs[1:], strict=True):
        mixed = torch.logaddexp(mixed, _accumulable(value) + log)
    return mixed.to(live[0][0].dtype)


def implausible(logits: Tensor, threshold: float) -> Tensor:
    """Tokens that contrastive decoding leaves out: `p < threshold * max p` (Li et al., arXiv 2210.15097, eq. 3).

    Args:
        logits: `[..., V]` of the expert.
        threshold: in (0, 1]; 1 leaves the most probable token only.

    Returns:
        `[..., V]`, bool.
    """
    return logits < logits.amax(-1, keepdim=True) + math.log(threshold)


def _accumulable(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))


def _live(values_K: Sequence[Tensor], weights_K: Sequence[float | Tensor]) -> list[tuple[Tensor, float | Tensor]]:
    if len(values_K) != len(weights_K):
        raise ValueError(f"got {len(weights_K)} weights for {len(values_K)} streams: give one for each stream")
    pairs = zip(values_K, weights_K, strict=True)
    live = [(v, w if isinstance(w, Tensor) else float(w)) for v, w in pairs if isinstance(w, Tensor) or w != 0]
    if not live:
        raise ValueError("all weights are 0: at least one must not be 0")
    return live
