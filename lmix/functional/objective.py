"""The clipped surrogate of GRPO with a normaliser over each group's tokens (eq. 5-6), and the baseline's KL."""

from typing import NamedTuple

import torch
from torch import Tensor


class SurrogateStats(NamedTuple):
    """What happened inside the clipped surrogate; scalars without gradient."""

    clip_fraction: Tensor
    """Share of the counted tokens whose ratio is clipped, so that they give no gradient."""
    mean_ratio: Tensor
    """Mean of the ratio (eq. 5) over the counted tokens."""


def clipped_surrogate_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    group: Tensor,
    clip_radius: float | tuple[float, float] = 0.2,
) -> tuple[Tensor, SurrogateStats]:
    """The loss of eq. 6, to be minimised: the negative of the clipped surrogate.

    `-mean_over_groups( 1 / (tokens of the group) * sum_{i, t} min(r A, clip(r) A) )`

    Args:
        log_probs: `[B, T]`, log-probability of each sampled token under the mixed policy, with gradient.
        old_log_probs: `[B, T]`, the same before the first inner update.
        advantages: `[B]`, of eq. 4.
        mask: `[B, T]`, true where a token counts (the completion with its end-of-sequence token, no padding).
        group: `[B]`, integer group of each row; any numbering.
        clip_radius: half-width of the ratio's interval around 1, or (below, above) for an asymmetric one.

    Returns:
        The scalar loss, and `SurrogateStats`.
    """
    surrogate, clipped, ratio = clipped_surrogate(log_probs, old_log_probs, advantages, mask, clip_radius)
    loss = -(surrogate * group_token_weights(mask.bool().sum(dim=1), group, log_probs.dtype)[:, None]).sum()
    count = mask.sum().clamp(min=1)
    return loss, SurrogateStats(clipped.sum() / count, (ratio.detach() * mask).sum() / count)


def clipped_surrogate(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_radius: float | tuple[float, float] = 0.2,
) -> tuple[Tensor, Tensor, Tensor]:
    """The token terms of eq. 6, `min(r A, clip(r, 1 - c, 1 + c) A)` with the ratio r of eq. 5; zero where masked.

    Shapes as in `clipped_surrogate_loss`.

    Returns:
        `[B, T]` each: the terms, whether the token is clipped (bool), and the ratio.
    """
    below, above = clip_radius if isinstance(clip_radius, tuple | list) else (clip_radius, clip_radius)
    mask = mask.bool()
    # padding may hold anything, so mask it before the exponential: inf - inf would make the gradient NaN
    ratio = torch.where(mask, log_probs - old_log_probs, 0.0).exp()
    advantage = advantages[:, None]
    clipped_ratio = ratio.clamp(1.0 - below, 1.0 + above)
    terms = torch.minimum(ratio * advantage, clipped_ratio * advantage)
    clipped = ((ratio < 1.0 - below) & (advantage < 0)) | ((ratio > 1.0 + above) & (advantage > 0))
    return torch.where(mask, terms, 0.0), clipped & mask, ratio


def group_token_weights(tokens: Tensor, group: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Weight of each token of a row in eq. 6: `1 / (groups * tokens of the row's group)`, `[B]`.

    A group without tokens adds nothing to the loss, but counts as a group.

    Args:
        tokens: `[B]`, how many tokens of each row count.
        group: `[B]`, integer group of each row; any numbering.
        dtype: of the weights.
    """
    ids, row_group = group.unique(return_inverse=True)
    group_tokens = torch.zeros(len(ids), dtype=tokens.dtype, device=tokens.device)
    group_tokens = group_tokens.index_add_(0, row_group, tokens).clamp(min=1)[row_group]
    return 1.0 / (len(ids) * group_tokens.to(dtype))


def sampler_weights(old_log_probs: Tensor, sampler_log_probs: Tensor, cap: float) -> Tensor:
    """Truncated importance weights for tokens drawn from another distribution, `min(p_old / p_sampler, cap)`.

    They correct for a sampler whose kernels or precision differ from the trainer's (Yao et al., "Your Efficient RL
    Framework Secretly Brings You Off-Policy RL Training", 2025). Without gradient.

    Args:
        old_log_probs: `[...]`, of the drawn tokens under the trainer's policy, before the first inner update.
        sampler_log_probs: `[...]`, the same under the sampler.
        cap: largest weight.
    """
    return (old_log_probs - sampler_log_probs).detach().exp().clamp(max=cap)


def k3_kl(log_probs: Tensor, reference_log_probs: Tensor) -> Tensor:
    """The k3 estimate of KL(policy || reference) at tokens drawn from the policy: `exp(d) - d - 1`, d = ref - policy.

    Never negative, and unbiased for tokens drawn from the policy (Schulman, "Approximating KL divergence", 2020).

    Args:
        log_probs: `[...]`, of the sampled tokens under the policy.
        reference_log_probs: `[...]`, under the reference.
    """
    difference = reference_log_probs - log_probs
    return difference.exp() - difference - 1.0


def uncertainty_weight(log_probs: Tensor) -> Tensor:
    """CHORD's phi, `p (1 - p)` of tokens with these log-probabilities, without gradient (arXiv 2508.11408, eq. 5)."""
    p = log_probs.detach().exp()
    return p * (1.0 - p)


def shaped_probability(log_probs: Tensor, gamma: float) -> Tensor:
    """LUFFY's policy shaping, `p / (p + gamma)` of tokens with these log-probabilities (arXiv 2504.14945).

    Its slope is largest at p = 0: unlikely tokens of a demonstration get more of the gradient than by p itself.
    """
    p = log_probs.exp()
    return p / (p + gamma)
