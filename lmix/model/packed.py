"""Matmuls with weights that are packed for oneDNN in advance, for rollouts on a CPU.

Legend: N rows, D_in and D_out features, K streams of the model, R the sum of their ranks.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from lmix.model.adapters import is_adapted
from lmix.model.backbone import has_bf16_units
from lmix.model.nf4 import dequantize, is_4bit
from lmix.model.streams import block_slices

ROWS = 64
"""Number of rows that the packed layout is made for; any other number works too."""


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether to pack weights: in bfloat16 on a CPU with hardware for it.

    The rule is fixed, because with a timing the tokens could change from run to run. Packing is faster in float32 too
    (docs/performance.md), but there the rounding depends on the number of rows, so several ranks would not train
    exactly as one process does.
    """
    packs = device.type == "cpu" and torch.backends.mkldnn.is_available()
    return packs and dtype == torch.bfloat16 and has_bf16_units()


def packed_bytes(model: nn.Module, width: int) -> int:
    """Bytes of a model's packed weights, at `width` bytes a number."""
    return sum(layer.in_features * layer.out_features * width for layer in packable(model))


@contextmanager
def packed(model: nn.Module, streams: Sequence[str], wanted: bool) -> Iterator[None]:
    """Inside this context, linear layers use packed weights, without gradient. Adapters must not change.

    Args:
        model: a model with its adapters.
        streams: the streams that live on it.
        wanted: pack the weights; false leaves the layers as they are.
    """
    layers = packable(model) if wanted else []
    masks: dict[Any, Tensor] = {}
    try:
        for layer in layers:
            layer.packed = PackedProduct(layer, streams, masks)
        yield
    finally:
        for layer in layers:
            layer.packed = None


def packable(module: nn.Module) -> list[Any]:
    """The frozen linear layers inside a module; of a layer with a LoRA, the LoRA layer around it."""
    modules = []
    for child in module.children():
        modules += [child] if hasattr(child, "packed") else packable(child)
    return modules


class PackedProduct:
    """A linear layer with packed weights, and with the LoRA of all its streams.

    The A factors of all streams are multiplied in one matmul, and a mask keeps each row's own stream. The base's output
    is rounded before the low-rank part is added, as in training, so that sampler and trainer compute the same
    log-probabilities.

    Args:
        layer: nn.Linear, a 4-bit layer, or peft's LoRA layer around one.
        streams: the streams of the model.
        masks: cache that layers share; those with the same ranks and scalings use the same mask.
    """

    def __init__(self, layer: Any, streams: Sequence[str], masks: dict[Any, Tensor]) -> None:
        base = layer.base_layer if is_adapted(layer) else layer
        weight = dequantize(base) if is_4bit(base) else base.weight
        self.dtype, self.bias = weight.dtype, base.bias
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
        self.streams = [s for s in streams if is_adapted(layer) and s in layer.lora_A]
        if not self.streams:
            return
        a = [layer.lora_A[s].weight for s in self.streams]
        self.a = torch.cat(a).to(self.dtype)
        self.b = torch.cat([layer.lora_B[s].weight for s in self.streams], dim=1).to(self.dtype).t()
        self.columns = slices_of([len(each) for each in a])
        scalings = [layer.scaling[s] for s in self.streams]
        self.scaling = scalings[0] if len(set(scalings)) == 1 else 1.0
        self.kept = [scaling / self.scaling for scaling in scalings]
        self._masks, self._kind = masks, tuple(zip(self.streams, map(len, a), self.kept, strict=True))

    def __call__(self, x: Tensor, streams: tuple[str, ...]) -> Tensor:
        """`[N, ..., D_in]` -> `[N, ..., D_out]`; the rows are equal blocks, one for each of these streams."""
        rows = x.reshape(-1, x.shape[-1]).to(self.dtype)
        out = torch.ops.mkldnn._linear_pointwise(rows, self.weight, self.bias, "none", [], "")
        if self.streams:
            inner = nn.functional.linear(rows, self.a).mul_(self._mask(len(rows), streams))
            out.addmm_(inner, self.b, alpha=self.scaling)
        return out.view(*x.shape[:-1], -1).to(x.dtype)

    def _mask(self, rows: int, streams: tuple[str, ...]) -> Tensor:
        """`[N, R]`: 1 (or the ratio of scalings) if a column of A belongs to the row's stream, otherwise 0."""
        key = rows, streams, self._kind
        if key not in self._masks:
            mask = self.a.new_zeros(rows, len(self.a))
            blocks = dict(zip(streams, block_slices(rows, len(streams)), strict=True))
            for stream, columns, kept in zip(self.streams, self.columns, self.kept, strict=True):
                if stream in blocks:
                    mask[blocks[stream], columns] = kept
            self._masks[key] = mask
        return self._masks[key]


def slices_of(lengths: Sequence[int]) -> list[slice]:
    """Adjacent slices of these lengths."""
    ends = list(accumulate(lengths))
    return [slice(begin, end) for begin, end in zip([0, *ends], ends, strict=False)]
