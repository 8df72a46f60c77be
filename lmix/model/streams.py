"""Streams: which adapter works on which rows of a stacked batch.

This is the only file that switches adapters. Outside of `StreamRouter.stacked` every row belongs to `policy`, so the
backward pass of a checkpointed layer recomputes what its forward pass computed, whatever ran in between.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lmix.model.linear import add_low_rank
from lmix.model.mixture import POLICY


class StreamRouter:
    """Holds the streams of the current pass; shared by all LoRA layers of one backbone."""

    def __init__(self) -> None:
        self.streams: tuple[str, ...] = (POLICY,)
        self._keeps = False
        self._kept: dict[tuple[Any, str, torch.dtype], tuple[Tensor, Tensor, float]] = {}

    @contextmanager
    def stacked(self, streams: Sequence[str]) -> Iterator[None]:
        """Inside this context each stream owns an equal block of rows. Only `policy` alone may have a gradient."""
        before, self.streams = self.streams, tuple(streams)
        try:
            yield
        finally:
            self.streams = before

    @contextmanager
    def keep_factors(self) -> Iterator[None]:
        """Inside this context, LoRA factors are cast once and not at each token. Adapters must not change.

        The casts are in buffers that stay from one rollout phase to the next, so that CUDA graphs remain valid.
        """
        for (layer, stream, _), (a, b, _) in self._kept.items():
            a.copy_(layer.lora_A[stream].weight)
            b.copy_(layer.lora_B[stream].weight)
        self._keeps = True
        try:
            yield
        finally:
            self._keeps = False

    def factors(self, layer: Any, stream: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, float]:
        """A `[r, in]`, B `[out, r]` and the scaling of a stream's LoRA on a layer, in `dtype`."""
        key = (layer, stream, dtype)
        if self._keeps and key in self._kept:
            return self._kept[key]
        a, b = layer.lora_A[stream].weight, layer.lora_B[stream].weight
        factors = a.to(dtype), b.to(dtype), layer.scaling[stream]
        if self._keeps:
            self._kept[key] = factors
        return factors

    def attach(self, layer: nn.Module) -> None:
        """Give a peft LoRA layer the stacked forward pass."""
        layer.packed = None  # pyright: ignore[reportArgumentType]
        layer.forward = partial(stacked_lora_forward, layer, self)


def stacked_lora_forward(layer: Any, router: StreamRouter, x: Tensor, *args, **kwargs) -> Tensor:
    """One matmul of the shared base for all rows, then each stream's low-rank product on its own block of rows.

    Low-rank products are computed in the base's dtype, whatever the adapter's dtype (as under autocast), and without
    dropout, which would make the ratio wrong.

    Args:
        layer: a LoraLayer of peft.
        router: says which streams the rows belong to.
        x: `[rows, ..., in_features]`, the blocks of the K streams stacked.

    Returns:
        `[rows, ..., out_features]`. A stream whose adapter does not touch this layer has the base's output.
    """
    streams = router.streams
    assert len(streams) == 1 or not torch.is_grad_enabled(), "only the policy may have gradients, in a pass of its own"
    if layer.packed is not None:
        return layer.packed(x, streams)
    rows = x.reshape(-1, x.shape[-1])
    out = layer.base_layer(rows)
    if len(streams) == 1:
        if streams[0] in layer.lora_A:
            out = add_low_rank(out, rows, *router.factors(layer, streams[0], out.dtype))
    else:
        for stream, part in zip(streams, block_slices(len(rows), len(streams)), strict=True):
            if stream in layer.lora_A:
                add_low_rank(out[part], rows[part], *router.factors(layer, stream, out.dtype))
    return out.view(*x.shape[:-1], -1)


def block_slices(rows: int, streams: int) -> list[slice]:
    """Each stream's block of a layer's rows. A row of the batch may be several rows of the layer, one per token."""
    size = rows // streams
    return [slice(k * size, (k + 1) * size) for k in range(streams)]
