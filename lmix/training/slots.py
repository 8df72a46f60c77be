"""`sampling.slots: auto`: as many rows as fit into the free memory, estimated with the planner's formulas."""

from lmix.model.frozen import dense_bytes
from lmix.model.mixed_policy import MixedPolicy
from lmix.model.mixture import POLICY, Mixture
from lmix.model.size import cache_bytes, key_width, logits_bytes, prefill_bytes
from lmix.rollout.engine import PREFILL_TOKENS
from lmix.training.config import SamplingConfig

USED, USED_BESIDE_UPDATE = 0.8, 0.4
"""Fraction of the free memory to use for rows. The rest allows for fragmentation and for errors of the estimate. If
keys and values stay in memory during the update (`sampling.compile`), half of it is left to the update."""


def automatic_slots(
    policy: MixedPolicy, mixture: Mixture, sampling: SamplingConfig, prompt_tokens: int, rows: int, free: float
) -> int:
    """The number of rows to decode at once, in whole groups: at least one group, at most all rows of a step.

    Args:
        policy: the mixed policy.
        mixture: the mixture that is sampled.
        sampling: its settings.
        prompt_tokens: length of the longest prompt.
        rows: rows that one device samples in a step.
        free: bytes of memory that are free on the device before the first step.
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
