"""Log-probabilities of packed rollouts under a mixture, with the policy's gradient.

Legend: N completion tokens, H hidden size.
"""

import torch
from torch import Tensor

from lmix.model.mixed_policy import MixedPolicy
from lmix.model.mixture import POLICY, Mixture
from lmix.rollout.packing import Packed
from lmix.rollout.types import Prompt, Rollout
from lmix.tasks.task import Problem


def score(policy: MixedPolicy, mixture: Mixture, packed: Packed) -> Tensor:
    """Log-probability of each completion token, `[N]`, float32; only the policy has a gradient."""
    hidden_K = [_hidden(policy, packed, stream) for stream in mixture.streams]
    return policy.log_probs(hidden_K, packed.targets, mixture.of_tokens(packed.positions))


@torch.no_grad()
def score_stream(policy: MixedPolicy, packed: Packed, stream: str) -> Tensor:
    """Log-probability of each completion token under one stream alone, `[N]`."""
    hidden = _hidden(policy, packed, stream)
    return policy.log_probs([hidden], packed.targets, Mixture.alone(stream))


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
