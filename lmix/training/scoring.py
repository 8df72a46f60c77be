"""Log-probabilities of packed rollouts under a mixture, with the policy's gradient.

Legend: N completion tokens, H hidden size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lmix.functional import token_log_probs, without_tokens
from lmix.model.mixed_policy import MixedPolicy
from lmix.model.mixture import POLICY, Mixture, RowMixtures
from lmix.rollout.packing import Packed
from lmix.rollout.types import Prompt, Rollout
from lmix.tasks.task import Problem


def score(policy: MixedPolicy, mixture: Mixture, packed: Packed) -> Tensor:
    """Log-probability of each completion token, `[N]`, float32. Only the policy receives a gradient."""
    return log_probs_of_drawn(policy, mixture_hidden(policy, mixture, packed), mixture, packed)


def score_with_entropy(policy: MixedPolicy, mixture: Mixture, packed: Packed) -> tuple[Tensor, Tensor]:
    """Like `score`, with the entropy of the mixture at each token.

    Returns:
        Log-probabilities and entropies, `[N]` each, float32. The entropies always include the end-of-sequence tokens.
    """
    hidden_K = mixture_hidden(policy, mixture, packed)
    entropies_N = policy.entropies(hidden_K, mixture.of_tokens(packed.positions))
    return log_probs_of_drawn(policy, hidden_K, mixture, packed), entropies_N


@torch.no_grad()
def score_stream(policy: MixedPolicy, mixture: Mixture, packed: Packed, stream: str) -> Tensor:
    """Log-probability of each completion token under one stream alone, at the mixture's temperature, `[N]`."""
    hidden = _hidden(policy, packed, stream)
    return log_probs_of_drawn(policy, [hidden], mixture.only(stream), packed)


def log_probs_of_drawn(policy: MixedPolicy, hidden_K: Sequence[Tensor], mixture: Mixture, packed: Packed) -> Tensor:
    """Log-probability of each completion token, `[N]`, relative to the tokens that could be sampled at its position.

    At positions before `min_new_tokens`, the end-of-sequence tokens are excluded.

    Args:
        policy: the mixed policy.
        hidden_K: the hidden states `[N, H]` of each of the mixture's streams.
        mixture: the distribution to score under.
        packed: the rollouts.
    """
    limits = packed.limits
    if limits is None or not limits.min_new_tokens:
        return policy.log_probs(hidden_K, packed.targets, mixture.of_tokens(packed.positions))
    early_N = packed.positions < limits.min_new_tokens
    early, late = early_N.nonzero().flatten(), (~early_N).nonzero().flatten()
    ends = torch.tensor(limits.end_ids, dtype=torch.long, device=early.device)

    def without_ends(logits: Tensor, targets: Tensor) -> Tensor:
        return token_log_probs(without_tokens(logits, ends, torch.ones_like(targets, dtype=torch.bool)), targets)

    def at(places: Tensor) -> tuple[list[Tensor], Mixture | RowMixtures]:
        return [h[places] for h in hidden_K], mixture.of_tokens(packed.positions[places])

    of_early = policy.head.of_tokens(without_ends, *at(early), policy.head.chunk, packed.targets[early])
    late_K, late_mixture = at(late)
    of_late = policy.log_probs(late_K, packed.targets[late], late_mixture)
    return of_late.new_zeros(len(early_N)).index_copy(0, early, of_early).index_copy(0, late, of_late)


def mixture_hidden(policy: MixedPolicy, mixture: Mixture, packed: Packed) -> list[Tensor]:
    """Hidden states that predict the completion tokens, `[N, H]` for each stream of the mixture."""
    return [_hidden(policy, packed, stream) for stream in mixture.streams]


def _hidden(policy: MixedPolicy, packed: Packed, stream: str) -> Tensor:
    """A stream's hidden states that predict the completion tokens, `[N, H]`: from decoding, or by a forward pass."""
    if stream in packed.frozen_hidden:
        return packed.frozen_hidden[stream]
    return policy.stream_hidden(packed.input_ids, stream, packed.prefix).flatten(0, 1)[packed.predicts]


def idle_rollout(policy: MixedPolicy, mixture: Mixture, keep_frozen: bool) -> Rollout:
    """A one-token completion of a one-token prompt, for the passes of a rank that only keeps pace with the others."""
    rollout = Rollout(Prompt(Problem(-1, "", ""), [0]), 0, [0], torch.zeros(1))
    frozen = [name for name in mixture.streams if keep_frozen and name != POLICY]
    if frozen:
        rollout.frozen_hidden = {
            name: torch.zeros(1, part.model.config.hidden_size, dtype=part.model.dtype)
            for part in policy.parts(frozen)
            for name in part.streams
        }
    return rollout
