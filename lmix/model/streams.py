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

POLICY, REFERENCE = "policy", "reference"


class StreamRouter:
    """Holds the streams of the pass that is under way; shared by all LoRA layers of one backbone."""

    def __init__(self) -> None:
        self.streams: tuple[str, ...] = (POLICY,)

    @contextmanager
    def stacked(self, streams: Sequence[str]) -> Iterator[None]:
        """Within, the rows of a batch are equal blocks, one a stream. Only `policy` alone may have a gradient."""
        before, self.streams = self.streams, tuple(streams)
        try:
            yield
        finally:
            self.streams = before

    def attach(self, layer: nn.Module) -> None:
        """Give a peft LoRA layer the stacked forward pass."""
        layer.forward = partial(stacked_lora_forward, layer, self)


def stacked_lora_forward(layer: Any, router: StreamRouter, x: Tensor, *args, **kwargs) -> Tensor:
    """One matmul of the shared base for all rows, then each stream's low-rank product on its own block of rows.

    Args:
        layer: a LoraLayer of peft.
        x: `[K * rows, ..., in_features]`, the blocks of the K streams stacked.

    Returns:
        `[K * rows, ..., out_features]`. A stream whose adapter does not touch this layer has the base's output.
    """
    out = layer.base_layer(x)
    streams = router.streams
    if len(streams) == 1:
        return out + low_rank(layer, streams[0], x, out.dtype) if streams[0] in layer.lora_A else out
    assert not torch.is_grad_enabled(), "a stacked pass is for sampling and scoring; only the policy may have gradients"
    rows = x.shape[0] // len(streams)
    for k, stream in enumerate(streams):
        if stream in layer.lora_A:
            block = slice(k * rows, (k + 1) * rows)
            out[block] += low_rank(layer, stream, x[block], out.dtype)
    return out


def low_rank(layer: Any, stream: str, x: Tensor, dtype: torch.dtype) -> Tensor:
    """`scaling * B(A(x))`, in the adapter's own dtype, as peft does; never with dropout (the ratio would be wrong)."""
    a, b = layer.lora_A[stream], layer.lora_B[stream]
    return (b(a(x.to(a.weight.dtype))) * layer.scaling[stream]).to(dtype)
