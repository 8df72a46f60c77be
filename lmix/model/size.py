"""How large a model's weights are, from its configuration alone."""

from typing import Any

from torch import nn
from transformers import PretrainedConfig

from lmix.model.backbone import skeleton


def count_weights(config: PretrainedConfig) -> tuple[int, int]:
    """Numbers of weights: of the decoder's linear layers, which are quantised, and all others."""
    model = skeleton(config)
    head: Any = model.get_output_embeddings()
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear) and m is not head)
    return linear, sum(p.numel() for p in model.parameters()) - linear


def head_weights(config: PretrainedConfig) -> int:
    """Weights of the head, tied or not."""
    head: Any = skeleton(config).get_output_embeddings()
    return head.weight.numel()


def weight_bytes(
    linear: int, other: int, width: int, nf4: bool, double_quantization: bool = True, shards: int = 1
) -> float:
    """Bytes of a model's weights on one device: 4 bits a weight and their scales, or the dtype.

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
    return linear * (0.5 / shards + scales) + other * width  # the scales are no parameters: every rank has them all
