"""Products with weights that were laid out for oneDNN beforehand, for a rollout phase on a CPU.

Layers that read the same input are one product, and so are the LoRA factors A of all streams: a row keeps those of its
own stream, the others are masked. So a token costs few calls.

Legend: N rows, D_in and D_out features, K streams of the model, R the sum of their ranks.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
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
    """One product of one or several linear layers that read the same input, and their LoRA products.

    The base's output is rounded before the low-rank part is added, as in the pass that is trained, so that the
    sampler's log-probabilities are the trainer's.

    Args:
        layers: nn.Linear, 4-bit layers, or peft's LoRA layers around them.
        streams: of the model, in any order.
    """

    def __init__(self, layers: Sequence[Any], streams: Sequence[str]) -> None:
        bases = [layer.base_layer if is_adapted(layer) else layer for layer in layers]
        weights = [dequantize(base) if is_4bit(base) else base.weight for base in bases]
        biases = [w.new_zeros(len(w)) if b.bias is None else b.bias for b, w in zip(bases, weights, strict=True)]
        self.dtype = weights[0].dtype
        self.weight = torch.ops.mkldnn._reorder_linear_weight(torch.cat(weights), ROWS)
        self.bias = None if all(base.bias is None for base in bases) else torch.cat(biases)
        self.outputs = slices_of([len(weight) for weight in weights])
        adapted = [layer for layer in layers if is_adapted(layer)]
        factors = [(layer, stream) for layer in adapted for stream in streams if stream in layer.lora_A]
        a = [layer.lora_A[stream].weight.to(self.dtype) for layer, stream in factors]
        self.a = torch.cat(a) if a else None
        self.columns = [(s, layer.scaling[s], c) for (layer, s), c in zip(factors, slices_of(map(len, a)), strict=True)]
        """Of each A: its stream, its scaling, and its columns of the product with all of them."""
        scalings = {scaling for _, scaling, _ in self.columns}
        self.scaling = scalings.pop() if len(scalings) == 1 else 1.0
        self.b: list[tuple[slice, slice, Tensor]] = []
        """Of each adapted layer: its outputs, its columns, and B of all streams, `[R, D_out]`."""
        for layer, outputs in zip(layers, self.outputs, strict=True):
            own = [s for s in streams if is_adapted(layer) and s in layer.lora_A]
            if own:
                b = torch.cat([layer.lora_B[s].weight for s in own], dim=1).to(self.dtype)
                begin = self.b[-1][1].stop if self.b else 0
                self.b.append((outputs, slice(begin, begin + b.shape[1]), b.t()))
        self._last: tuple[Any, tuple[str, ...], Tensor] | None = None
        self._masks: dict[tuple[int, tuple[str, ...]], Tensor] = {}

    def __call__(self, x: Tensor, streams: tuple[str, ...], number: int) -> Tensor:
        """Layer `number`'s output for `[N, ..., D_in]`, whose rows are equal blocks of these streams."""
        if self._last is None or self._last[0] is not x or self._last[1] != streams:
            self._last = x, streams, self._product(x.reshape(-1, x.shape[-1]).to(self.dtype), streams)
        out = self._last[2]
        if number == len(self.outputs) - 1:
            self._last = None
        return out[:, self.outputs[number]].view(*x.shape[:-1], -1).to(x.dtype)

    def _product(self, rows: Tensor, streams: tuple[str, ...]) -> Tensor:
        out = torch.ops.mkldnn._linear_pointwise(rows, self.weight, self.bias, "none", [], "")
        if self.a is not None:
            inner = nn.functional.linear(rows, self.a).mul_(self._mask(len(rows), streams))
            for outputs, columns, b in self.b:
                out[:, outputs].addmm_(inner[:, columns], b, alpha=self.scaling)
        return out

    def _mask(self, rows: int, streams: tuple[str, ...]) -> Tensor:
        """1 (or what scalings differ by) where a row's stream has the column of A, and 0 elsewhere: `[N, R]`."""
        key = rows, streams
        if key not in self._masks:
            assert self.a is not None
            mask = self.a.new_zeros(rows, len(self.a))
            blocks = dict(zip(streams, slices_of([rows // len(streams)] * len(streams)), strict=True))
            for stream, scaling, columns in self.columns:
                if stream in blocks:
                    mask[blocks[stream], columns] = scaling / self.scaling
            self._masks[key] = mask
        return self._masks[key]


def slices_of(lengths: Iterable[int]) -> list[slice]:
    """Adjacent slices of these lengths."""
    ends = list(accumulate(lengths))
    return [slice(begin, end) for begin, end in zip([0, *ends], ends, strict=False)]
