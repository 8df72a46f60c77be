"""Log-probabilities of packed rollouts under a mixture, with the policy's gradient.

Legend: N completion tokens, H hidden size.
"""

from dataclasses import replace

import torch
from torch import Tensor

from lmix.model.mixed_policy import MixedPolicy
from lmix.model.mixture import POLICY, Mixture
from lmix.rollout.packing import Packed
from lmix.rollout.types import Prompt, Rollout
from lmix.tasks.task import Problem


def score(policy: MixedPolicy, mixture: Mixture, packed: Packed) -> Tensor:
    """Log-probability of each completion token, `[N]`, float32; only the policy has a gradient."""
    hidden_K = mixture_hidden(policy, mixture, packed)
    return policy.log_probs(hidden_K, packed.targets, mixture.of_tokens(packed.positions))


def score_with_entropy(policy: MixedPolicy, mixture: Mixture, packed: Packed) -> tuple[Tensor, Tensor]:
    """The same, and the entropy of the distribution that each token was drawn from: `[N]` twice."""
    hidden_K, of_tokens = mixture_hidden(policy, mixture, packed), mixture.of_tokens(packed.positions)
    return policy.log_probs(hidden_K, packed.targets, of_tokens), policy.entropies(hidden_K, of_tokens)


@torch.no_grad()
def score_stream(policy: MixedPolicy, mixture: Mixture, packed: Packed, stream: str) -> Tensor:
    """Log-probability of each completion token under one stream alone, at the mixture's temperature, `[N]`."""
    hidden = _hidden(policy, packed, stream)
    alone = replace(Mixture.alone(stream), temperature=mixture.temperature)
    return policy.log_probs([hidden], packed.targets, alone)


def mixture_hidden(policy: MixedPolicy, mixture: Mixture, packed: Packed) -> list[Tensor]:
    """Each stream's hidden states that predict the completion tokens, `[N, H]`."""
    return [_hidden(policy, packed, stream) for stream in mixture.streams]


def _hidden(policy: MixedPolicy, packed: Packed, stream: str) -> Tensor:
    """A stream's hidden states that predict the completion tokens, `[N, H]`: kept ones, or by a pass."""
    if stream in packed.frozen_hidden:
        return packed.frozen_hidden[stream]
    return policy.stream_hidden(packed.input_ids, stream, packed.prefix).flatten(0, 1)[packed.predicts]


def idle_rollout(policy: MixedPolicy, mixture: Mixture, keep_frozen: bool) -> Rollout:
    """One token after one token, for the passes of a rank that waits for others; its gradient counts nothing."""
    rollout = Rollout(Prompt(Problem(-1, "", ""), [0]), 0, [0], torch.zeros(1))
    frozen = [name for name in mixture.streams if keep_frozen and name != POLICY]
    if frozen:
        rollout.frozen_hidden = {
            name: torch.zeros(1, part.model.config.hidden_size, dtype=part.model.dtype)
            for part in policy.parts(frozen)
            for name in part.streams
        }
    return rollout
