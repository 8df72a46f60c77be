"""Shard a frozen backbone over ranks (FSDP2); adapters, embeddings and head are whole on every rank.

Only the decoder layers' frozen weights are sharded. They have no gradient, so there is no reduce-scatter, the optimiser
is that of a single process, and checkpoints are the same files.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer


def shard_layers(decoder: nn.Module, mesh: DeviceMesh) -> list[FSDPModule]:
    """Shard the frozen weights of each decoder layer in place; every rank must call it, with the same weights.

    Raises:
        ValueError: a decoder whose layers can't be identified.
    """
    layers = [m for m in decoder.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(f"trainer.strategy can't shard {type(decoder).__name__}: lmix can't find its decoder layers")
    for layer in layers:
        whole = {p for name, p in layer.named_parameters() if ".lora_" in name}
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
    # by default FSDP prefetches what ran before a layer, which differs between ranks: only some may have drawn tokens
    for before, layer in zip([layers[0], *layers[:-1]], layers, strict=True):
        layer.set_modules_to_backward_prefetch([before])  # pyright: ignore
    # the root has no weights of its own; it only lets each layer prefetch the next one
    fully_shard(decoder, mesh=mesh, ignored_params={p for p in decoder.parameters() if not isinstance(p, DTensor)})
    return layers  # pyright: ignore[reportReturnType]


@contextmanager
def gathered(layers: list[Any]) -> Iterator[None]:
    """Inside this context every rank holds all weights and runs passes independently. Every rank must enter it."""
    for layer in layers:
        layer.set_reshard_after_forward(False)
        layer.unshard()
    try:
        yield
    finally:
        for layer in layers:
            layer.reshard()
            layer.set_reshard_after_forward(True)
