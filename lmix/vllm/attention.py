# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""Keys and values for each stream, by one copy per stream of a decoder's attention layers.

Legend: K streams, N tokens of a pass.
"""

import copy
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.layers.attention import Attention


def stack_attention(layers: dict[str, Any], names: Iterable[str], streams: Sequence[str]) -> None:
    """Give each stream after the first its own attention layers, and so its own part of vLLM's cache.

    Args:
        layers: vLLM's table of the layers that have a cache; the copies are added to it.
        names: names of the decoder's layers in this table.
        streams: names of the K streams.

    Raises:
        ValueError: a layer that is not ordinary attention.
    """
    for name in list(names):
        first = layers[name]
        if type(first) is not Attention or first.kv_sharing_target_layer_name is not None:
            raise ValueError(
                f"vLLM's layer {name} is a {type(first).__name__}: lmix serves mixed policies of dense models with "
                "ordinary attention only, so use lmix's own engine"
            )
        every = [first]
        for stream in streams[1:]:
            other = copy.copy(first)
            other.impl = copy.copy(first.impl)
            other.layer_name = f"{name}.{stream}"
            layers[other.layer_name] = other
            every.append(other)
        first.forward = partial(stacked_attention, every)


def stacked_attention(layers: Sequence[Attention], query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    """Attention of each stream over its own keys. Tensors are `[K * N, ...]`, one block of rows for each stream."""
    blocks = [t.unflatten(0, (len(layers), -1)).unbind(0) for t in (query, key, value)]
    return torch.cat([Attention.forward(layer, *block, **given) for layer, *block in zip(layers, *blocks, strict=True)])
