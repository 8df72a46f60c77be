"""What each layer attends to: kinds of attention, their masks, and the implementation to use."""

import torch
from torch import Tensor
from transformers import PretrainedConfig


def attention_kinds(config: PretrainedConfig) -> list[str]:
    """The kinds of attention layers: `full_attention`, or `sliding_attention` over the newest `sliding_window` tokens.

    Raises:
        ValueError: the backbone has layers of another kind, whose state lmix can't keep for each row.
    """
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention" if window is None else "sliding_attention"])
    if unknown := kinds - {"full_attention", "sliding_attention"}:
        kind = getattr(config, "model_type", None)
        raise ValueError(
            f"backbone of type {kind!r} has layers of kind {min(unknown)}: lmix samples from models whose layers "
            "have full or sliding-window attention only"
        )
    return sorted(kinds)


def attention_masks(
    config: PretrainedConfig, seen: Tensor, queries: Tensor, keys: Tensor, dtype: torch.dtype
) -> Tensor | dict[str, Tensor]:
    """Masks `[B, 1, T, L]` as the decoder takes them: one tensor, or a dict with one for each kind of layer.

    Args:
        config: the backbone's configuration.
        seen: `[B, T, L]`, true where causality lets a query attend to a key.
        queries: `[B, T, 1]`, positions of the queries.
        keys: `[B, 1, L]`, positions of the keys.
        dtype: of the additive masks of eager attention (0, or the dtype's minimum); other kernels take booleans.
    """
    masks = {"full_attention": seen}
    kinds = attention_kinds(config)
    if "sliding_attention" in kinds:
        masks["sliding_attention"] = seen & (queries - keys < config.sliding_window)  # pyright: ignore
    by_kind = {}
    for kind in kinds:
        mask = masks[kind][:, None]
        if config._attn_implementation == "eager":
            mask = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)
        by_kind[kind] = mask
    return by_kind if len(by_kind) > 1 else by_kind[kinds[0]]


def attention_for(config: PretrainedConfig) -> str:
    """The attention implementation: torch's fused one, except for models that cap their scores (Gemma 2)."""
    return "eager" if getattr(config, "attn_logit_softcapping", None) else "sdpa"


def avoid_cudnn_attention() -> None:
    """Turn off cuDNN's kernel of the fused attention, for the whole process.

    From torch 2.11 it is the default in bfloat16 on Hopper GPUs. With a mask, its backward pass gives NaN for some
    lengths where all scores of a query are very negative, as in a head of Qwen2.5 (pytorch issue 196678, trl issue
    7181). It also prepares each new shape, and every micro-batch has another one.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
