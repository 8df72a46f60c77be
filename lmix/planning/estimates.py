"""Formulas for the memory and time of a run. docs/scaling.md says which of them were checked against runs."""

from dataclasses import replace

from lmix.model.flops import drawn_flops, trained_flops
from lmix.model.head import CHUNK_LOGITS
from lmix.model.size import cache_bytes, logit_bytes, logits_bytes, prefill_bytes, weight_bytes
from lmix.planning.shape import FrozenModel, ModelShape, RunShape
from lmix.planning.vllm import vllm_weights, with_vllm
from lmix.rollout.engine import PREFILL_TOKENS

ADDED = ("rollout: keys and values", "rollout: prefill", "rollout: logits", "update: logits")
"""Parts of the memory that each further model of the mixture adds to, besides its weights."""


def backbone_bytes(model: ModelShape, run: RunShape) -> float:
    """Bytes of the policy's backbone on one device."""
    shards = run.devices if run.sharded else 1
    return weight_bytes(model.linear, model.other, run.width, run.nf4, run.double_quantization, shards)


def activation_bytes(model: ModelShape, run: RunShape) -> float:
    """Bytes that one token keeps for the backward pass.

    A layer keeps the inputs of its two norms and of its LoRA layers, queries, keys and values (of all query heads), the
    attention's output twice, and four tensors of the MLP's inner width.
    """
    norms = 2 * model.hidden * 4  # in float32
    layer = norms + run.width * (2 * model.hidden + 5 * model.queries + 4 * model.inner)
    if run.checkpointing:
        return model.layers * model.hidden * run.width + layer
    return model.layers * layer


def prefix_bytes(model: ModelShape, run: RunShape) -> float:
    """Bytes, per token of a pass, of a shared prompt's keys and values, which attention keeps for each completion."""
    if not run.shares_prompts:
        return 0.0
    completions = 1.0 / (run.tokens + run.prompt_tokens / run.samples)
    return completions * run.prompt_tokens * model.layers * 2.0 * model.queries * run.width


def memory(model: ModelShape, run: RunShape) -> dict[str, float]:
    """Bytes on one device, by purpose. Parts of `rollout:` and of `update:` are never in memory at the same time."""
    streams, width = run.streams, run.width
    row = run.prompt_tokens + run.tokens
    passed = min(max(run.pass_tokens, row), run.most_tokens)  # a longer row is a pass by itself
    prefilled = streams * min(PREFILL_TOKENS, run.decoded * run.prompt_tokens)
    gathered = model.linear * (0.5 if run.nf4 else width) if run.sharded else 0.0
    logit = logit_bytes(width)
    parts = {
        "backbone": backbone_bytes(model, run),
        "adapters": 4.0 * (model.lora + model.frozen_lora),
        "gradient and optimiser": 12.0 * model.lora,
        "rollout: keys and values": streams * run.decoded * cache_bytes(row, model.layers, model.keys, width),
        "rollout: prefill": prefill_bytes(prefilled, model.layers, model.keys, width, model.inner),
        "rollout: logits": run.decoded * logits_bytes(model.vocabulary, width, streams if run.mixes_logits else 0),
        "rollout: hidden states of frozen streams": float(run.active * run.tokens * run.kept * model.hidden * width),
        "rollout: dequantised copy": float(model.linear * width) if run.copies else 0.0,
        "rollout: packed weights": float((model.linear + model.head) * width) if run.packed else 0.0,
        "rollout: gathered shards": gathered,
        "update: activations": passed * activation_bytes(model, run),
        "update: prompts' keys and values": passed * prefix_bytes(model, run),
        "update: logits": min(CHUNK_LOGITS, passed * model.vocabulary)
        * (logit * (3 * streams if run.mixes_logits else 1)),
        # gradients of three tensors of the MLP, and the gathered shards of this layer and the next one
        "update: backward of a layer": 3.0 * passed * model.inner * width + 2.0 * gathered / model.layers,
    }
    for other in run.others:
        theirs = memory(other.shape, alone(other, run))
        parts["frozen models"] = parts.get("frozen models", 0.0) + theirs["backbone"]
        parts["rollout: dequantised copy"] += theirs["rollout: dequantised copy"]
        for name in ADDED if other.streams else ():
            parts[name] += theirs[name]
        parts["rollout: hidden states of frozen streams"] += run.active * kept_bytes(other, run)
    if run.compiled:  # CUDA graphs need them at fixed addresses
        for name in ("keys and values", "dequantised copy"):
            parts[f"{name}, kept"] = parts.pop(f"rollout: {name}")
    return with_vllm(parts, run.vllm) if run.vllm is not None else parts


def alone(other: FrozenModel, run: RunShape) -> RunShape:
    """The run's sizes with only the streams of a frozen model, which is not sharded."""
    return replace(
        run, nf4=other.nf4, streams=other.streams, keep_frozen=False, kl=False, sharded=False, compiled=False, others=()
    )


def kept_bytes(other: FrozenModel, run: RunShape) -> float:
    """Bytes of the hidden states of a completion that are kept for a frozen model's streams."""
    return float(run.tokens * other.streams * other.shape.hidden * run.width) if run.keep_frozen else 0.0


def peak(parts: dict[str, float]) -> float:
    """Largest number of bytes at one time: permanent parts, plus the larger of the two phases."""
    stays = sum(v for k, v in parts.items() if ":" not in k)
    phases = [sum(v for k, v in parts.items() if k.startswith(phase)) for phase in ("rollout:", "update:")]
    return stays + max(phases)


def host_bytes(model: ModelShape, run: RunShape) -> float:
    """Bytes on the host for one device: the kept hidden states of a step's completions, or the whole of a sharded
    backbone while it is loaded, if that is more; and vLLM's weights while it sleeps."""
    loaded = backbone_bytes(model, replace(run, devices=1)) if run.sharded else 0.0
    asleep = vllm_weights(model, run, run.vllm) if run.vllm is not None and run.vllm.sleeps else 0.0
    kept = float(run.tokens * run.kept * model.hidden * run.width) + sum(kept_bytes(o, run) for o in run.others)
    return max(loaded, run.rows * kept) + asleep


def largest(model: ModelShape, run: RunShape, device_bytes: float) -> tuple[int, int]:
    """The most slots, and the most tokens of an update's pass, that fit on a device, each with the other at its
    minimum; 0 if not even one fits."""

    def fits(**changes: int) -> bool:
        return peak(memory(model, replace(run, **changes))) <= device_bytes

    few = {"slots": run.samples, "pass_tokens": 1}
    return (
        run.samples * _most(lambda n: fits(**{**few, "slots": n * run.samples}), run.rows // run.samples),
        _most(lambda n: fits(**{**few, "pass_tokens": n}), run.most_tokens),
    )


def _most(fits, limit: int) -> int:
    """The largest n up to the limit that fits, by bisection: if n does not fit, no larger n does."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def rollout_seconds(model: ModelShape, run: RunShape, flops: float, bandwidth: float) -> float:
    """Seconds to draw a step's completions. A token costs the larger of its matmuls and of reading weights and cache.

    Args:
        model: sizes of the policy's model.
        run: sizes of the run.
        flops: a device's operations per second in the backbone's dtype, as measured on large matrices.
        bandwidth: bytes per second of its memory.
    """
    waves = run.rows / run.active
    streams = run.streams
    linear, adapters = streams * model.linear, model.lora + model.frozen_lora
    products = drawn_flops(linear, adapters, model.head, 0, run.active)
    dense = run.dense_rollouts or not run.nf4
    weights = model.linear * (run.width if dense else 0.5 + 2 * run.width) + model.head * run.width
    context = run.prompt_tokens + run.tokens / 2
    cache = 2.0 * streams * run.active * context * model.layers * model.keys * run.width
    token = max(products / flops, (weights + cache) / bandwidth)
    prompts = drawn_flops(linear, adapters, model.head, run.rows / run.samples * run.prompt_tokens, 0) / flops
    others = sum(rollout_seconds(o.shape, alone(o, run), flops, bandwidth) for o in run.others if o.streams)
    return waves * run.tokens * token + prompts + others


def update_seconds(model: ModelShape, run: RunShape, flops: float) -> float:
    """Seconds of one update: forward and backward passes of the policy (frozen weights have no gradient), and a forward
    pass of each frozen stream whose hidden states were not kept. Communication between devices is not counted."""
    rows, tokens = scored_tokens(run)
    passes = 3.0 if run.checkpointing else 2.0
    forwards = max(0, run.streams - 1 - run.kept) + (1 if run.kl else 0)
    predicted, heads = rows * run.tokens, 2.0 + (1 if run.kl else 0)
    spent = trained_flops(model.linear, model.lora, model.head, tokens, predicted, passes + forwards, heads)
    return (spent + sum(forward_flops(other, run, other.kl) for other in run.others)) / flops


def old_seconds(model: ModelShape, run: RunShape, flops: float) -> float:
    """Seconds to compute old log-probabilities before the update: for all mini-batches but the first, by a forward pass
    of every stream whose hidden states were not kept."""
    rows, tokens = scored_tokens(run)
    streams = max(0, run.streams - run.kept)
    spent = trained_flops(model.linear, 0, model.head, tokens, rows * run.tokens, streams, 1)
    spent += 2.0 * tokens * streams * model.lora
    spent += sum(forward_flops(other, run) for other in run.others)
    return (1.0 - 1.0 / run.mini_batches) * spent / flops


def forward_flops(other: FrozenModel, run: RunShape, kl: bool = False) -> float:
    """FLOPs of an update's rows in a frozen model: its streams whose hidden states were not kept, its head, and one
    more pass for a KL."""
    rows, tokens = scored_tokens(run)
    passes, heads = (0 if run.keep_frozen else other.streams) + kl, min(other.streams, 1) + kl
    return trained_flops(other.shape.linear, 0, other.shape.head, tokens, rows * run.tokens, passes, heads)


def scored_tokens(run: RunShape) -> tuple[float, float]:
    """Number of rows that an update scores, and of tokens in their passes. A shared prompt counts once."""
    rows = run.rows * run.live
    prompts = rows / run.samples if run.shares_prompts else rows
    return rows, rows * run.tokens + prompts * run.prompt_tokens
