"""Sizes of a model's weights, its cache and its logits, from its configuration alone."""

from typing import Any, NamedTuple

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from lmix.model.backbone import skeleton


class WeightCounts(NamedTuple):
    """How many weights a model has."""

    linear: int
    """Weights of the decoder's linear layers, which are quantised."""
    other: int
    """All other weights."""
    head: int
    """Weights of the head, tied or not."""


def count_weights(model: PretrainedConfig | PreTrainedModel) -> WeightCounts:
    """Count the weights of a model, or of the one that a configuration describes."""
    model = skeleton(model) if isinstance(model, PretrainedConfig) else model
    head: Any = model.get_output_embeddings()
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear) and m is not head)
    return WeightCounts(linear, sum(p.numel() for p in model.parameters()) - linear, head.weight.numel())


def head_size(config: PretrainedConfig) -> int:
    """Width of one attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def key_width(config: PretrainedConfig) -> int:
    """Width of all key heads of a layer; values have the same."""
    return (getattr(config, "num_key_value_heads", None) or config.num_attention_heads) * head_size(config)


def weight_bytes(
    linear: int, other: int, width: int, nf4: bool, double_quantization: bool = True, shards: int = 1
) -> float:
    """Bytes of a model's weights on one device: 4 bits a weight plus scales with NF4, otherwise `width` bytes.

    Args:
        linear: weights of the decoder's linear layers, which are quantised and sharded.
        other: all other weights.
        width: bytes of a number in the dtype.
        nf4: whether linear layers are held in 4 bits.
        double_quantization: see `BackboneConfig`.
        shards: devices that share the linear layers.
    """
    if not nf4:
        return linear * width / shards + other * width
    scales = 1 / 64 + 4 / (64 * 256) if double_quantization else 4 / 64
    return linear * (0.5 / shards + scales) + other * width  # the scales are not parameters, so they are not sharded


def cache_bytes(tokens: int, layers: int, keys: int, width: int) -> float:
    """Bytes of one row's keys and values in one stream.

    Args:
        tokens: tokens of the row.
        layers: layers of the decoder.
        keys: width of all key heads of a layer; values have the same.
        width: bytes of a number in the dtype.
    """
    return 2.0 * tokens * layers * keys * width


def prefill_bytes(tokens: int, layers: int, keys: int, width: int, inner: int) -> float:
    """Bytes that a prefill of `tokens` prompt tokens needs: keys and values of all layers, and one MLP's tensors.

    Args:
        inner: intermediate width of an MLP; the other arguments are as in `cache_bytes`.
    """
    return cache_bytes(tokens, layers, keys, width) + 3.0 * tokens * inner * width


def logit_bytes(width: int) -> float:
    """Bytes of one logit: in the dtype, plus a float32 copy if that is another dtype."""
    return (width if width < 4 else 0) + 4.0


def logits_bytes(vocabulary: int, width: int, streams: int) -> float:
    """Bytes of the logits (see `logit_bytes`) and of the probabilities of one row that is sampled.

    Args:
        streams: number of streams whose own logits are computed; 0 if hidden states are mixed.
    """
    return vocabulary * (logit_bytes(width) * max(1, 2 * streams) + 4.0)
