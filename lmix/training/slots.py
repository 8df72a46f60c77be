"""`sampling.slots: auto`: as many rows as the free memory holds, by the planner's arithmetic."""

from lmix.model.frozen import dense_bytes
from lmix.model.mixed_policy import MixedPolicy
from lmix.model.mixture import POLICY, Mixture
from lmix.model.size import cache_bytes, key_width, logits_bytes, prefill_bytes
from lmix.rollout.engine import PREFILL_TOKENS
from lmix.training.config import SamplingConfig

USED, USED_BESIDE_UPDATE = 0.8, 0.4
"""Part of the free memory that rows are given: allocators leave gaps, and the estimate is one. Where keys and values
stay during the update (`sampling.compile`), half of it is left to that."""


def automatic_slots(
    policy: MixedPolicy, mixture: Mixture, sampling: SamplingConfig, prompt_tokens: int, rows: int, free: float
) -> int:
    """Rows to decode at once: whole groups, at least one, at most a step's.

    Args:
        mixture: what is drawn from.
        prompt_tokens: of the longest prompt.
        rows: that one device draws in a step.
        free: bytes that the device has to spare before the first step.
    """
    parts, samples = policy.parts(mixture.streams), sampling.samples_per_prompt
    length = prompt_tokens + sampling.max_new_tokens
    fixed = 12.0 * sum(p.numel() for p in policy.policy_parameters())  # gradient and AdamW's two moments
    fixed += dense_bytes(policy) if policy.dense_rollouts else 0.0
    prefilled = min(PREFILL_TOKENS, rows // samples * prompt_tokens)
    row = 0.0
    for part in parts:
        config, streams, width = part.model.config, len(part.streams), part.model.dtype.itemsize
        sizes = config.num_hidden_layers, key_width(config), width
        fixed += prefill_bytes(streams * prefilled, *sizes, config.intermediate_size)
        own = 0 if part.model.head.mixes_hidden(True) and mixture.kind == "logits" else streams
        row += streams * cache_bytes(length, *sizes) + logits_bytes(config.vocab_size, width, own)
        frozen = sum(name != POLICY for name in part.streams) if sampling.keep_frozen else 0
        row += frozen * sampling.max_new_tokens * config.hidden_size * width
    part_used = USED_BESIDE_UPDATE if sampling.compile else USED
    groups = int((part_used * free - fixed) / row) // samples
    return samples * max(1, min(groups, rows // samples))
