"""Products with weights that were laid out for oneDNN beforehand, for a rollout phase on a CPU.

A layer's weight and its streams' LoRA factors B are one matrix, `[W | s_1 B_1 | ... | s_K B_K]`, and layers that read
the same input are one product: few rows then cost few calls, and no pass over the output for the low-rank part.

Legend: N rows, D_in and D_out features, K streams of the model, R the sum of their ranks.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lmix.model.adapters import is_adapted
from lmix.model.backbone import has_avx512, has_bf16_units
from lmix.model.nf4 import dequantize, is_4bit

SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers of one module that transformers' decoders give the same input."""
ROWS = 64
"""Rows that the weights are laid out for; others take them as well."""


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether packed weights are faster, by a table and not by a timing, which would make tokens depend on the moment:
    in bfloat16 on a CPU that has units for it, in float32 on one with AVX-512 (measured: docs/performance.md)."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return has_bf16_units() if dtype == torch.bfloat16 else dtype == torch.float32 and has_avx512()


def packed_bytes(model: nn.Module, width: int) -> int:
    """Bytes of a model's packed weights at so many bytes a number, without LoRA's."""
    return sum(layer.in_features * layer.out_features * width for group in groups(model) for layer in group)


@contextmanager
def packed(model: nn.Module, streams: Sequence[str], wanted: bool) -> Iterator[None]:
    """Let linear layers compute by packed products inside this context. No adapter may change, nothing has a gradient.

    Args:
        model: with its adapters.
        streams: that live on it.
        wanted: leave everything as it is where false.
    """
    found = groups(model) if wanted else []
    try:
        for group in found:
            product = PackedProduct(group, streams)
            for number, layer in enumerate(group):
                layer.packed = product, number
        yield
    finally:
        for group in found:
            for layer in group:
                layer.packed = None


def groups(module: nn.Module) -> list[list[Any]]:
    """The frozen linear layers below a module, siblings together where all or none of them have a LoRA."""
    found, rest = [], dict(module.named_children())
    for names in SIBLINGS:
        together = [rest[name] for name in names if name in rest and hasattr(rest[name], "packed")]
        if len(together) == len(names) and len({is_adapted(layer) for layer in together}) == 1:
            found.append(together)
            rest = {name: child for name, child in rest.items() if name not in names}
    for child in rest.values():
        found += [[child]] if hasattr(child, "packed") else groups(child)
    return found


class PackedProduct:
    """One product of one or several linear layers that read the same input, LoRA included.

    Args:
        layers: nn.Linear, 4-bit layers, or peft's LoRA layers around them.
        streams: of the model, in any order.
    """

    def __init__(self, layers: Sequence[Any], streams: Sequence[str]) -> None:
        weights, biases, a, b, self.columns = [], [], [], [], {}
        self.ends: list[int] = []
        for layer in layers:
            base = layer.base_layer if is_adapted(layer) else layer
            weight = dequantize(base) if is_4bit(base) else base.weight
            weights.append(weight)
            biases.append(weight.new_zeros(len(weight)) if base.bias is None else base.bias)
            self.ends.append(len(weight) + (self.ends[-1] if self.ends else 0))
        self.dtype = weights[0].dtype
        for stream in streams:
            first = sum(len(each) for each in a)
            for number, layer in enumerate(layers):
                if not (is_adapted(layer) and stream in layer.lora_A):
                    continue
                factor = layer.lora_B[stream].weight * layer.scaling[stream]
                above = self.ends[number] - len(factor)
                a.append(layer.lora_A[stream].weight.to(self.dtype))
                b.append(nn.functional.pad(factor, (0, 0, above, self.ends[-1] - self.ends[number])).to(self.dtype))
            self.columns[stream] = (first, sum(len(each) for each in a))
        bias = any((layer.base_layer if is_adapted(layer) else layer).bias is not None for layer in layers)
        self.bias = torch.cat(biases) if bias else None
        whole = torch.cat([torch.cat(weights), *b], dim=1)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(whole, ROWS)
        self.a = torch.cat(a) if a else None
        self._last: tuple[Any, tuple[str, ...], Tensor] | None = None
        self._masks: dict[tuple[int, tuple[str, ...]], Tensor] = {}

    def __call__(self, x: Tensor, streams: tuple[str, ...], number: int) -> Tensor:
        """Layer `number`'s output for `[N, ..., D_in]`, whose rows are equal blocks of these streams."""
        if self._last is None or self._last[0] is not x or self._last[1] != streams:
            self._last = x, streams, self._product(x.reshape(-1, x.shape[-1]), streams)
        out = self._last[2]
        if number == len(self.ends) - 1:
            self._last = None
        begin = self.ends[number - 1] if number else 0
        return out[:, begin : self.ends[number]].view(*x.shape[:-1], -1)

    def _product(self, rows: Tensor, streams: tuple[str, ...]) -> Tensor:
        rows = rows.to(self.dtype)
        if self.a is not None:
            inner = nn.functional.linear(rows, self.a).mul_(self._mask(len(rows), streams))
            rows = torch.cat([rows, inner], dim=1)
        return torch.ops.mkldnn._linear_pointwise(rows, self.weight, self.bias, "none", [], "")

    def _mask(self, rows: int, streams: tuple[str, ...]) -> Tensor:
        """1 where a row's stream has the column of A, `[N, R]`."""
        key = rows, streams
        if key not in self._masks:
            assert self.a is not None
            mask = torch.zeros(rows, len(self.a), dtype=self.dtype)
            size = rows // len(streams)
            for k, stream in enumerate(streams):
                first, end = self.columns[stream]
                mask[k * size : (k + 1) * size, first:end] = 1.0
            self._masks[key] = mask
        return self._masks[key]
