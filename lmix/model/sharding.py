"""A frozen backbone in shards, one a rank (FSDP2); adapters, embeddings and head are whole everywhere.

Only the decoder layers' frozen weights are sharded, and they have no gradient: nothing is scattered back, the optimiser
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
        ValueError: a decoder whose layers can't be told.
    """
    layers = [m for m in decoder.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(f"trainer.strategy can't shard {type(decoder).__name__}: its layers are not known")
    for layer in layers:
        whole = {p for name, p in layer.named_parameters() if ".lora_" in name}
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
    # by themselves layers fetch what ran before them, which differs between ranks: some have drawn tokens, some none
    for before, layer in zip([layers[0], *layers[:-1]], layers, strict=True):
        layer.set_modules_to_backward_prefetch([before])  # pyright: ignore
    # the root has no weights of its own: it only lets layers fetch the next one's while they work
    fully_shard(decoder, mesh=mesh, ignored_params={p for p in decoder.parameters() if not isinstance(p, DTensor)})
    return layers  # pyright: ignore[reportReturnType]


@contextmanager
def gathered(layers: list[Any]) -> Iterator[None]:
    """Inside this context every rank holds all weights and runs passes independently. Every rank must call it."""
    for layer in layers:
        layer.set_reshard_after_forward(False)
        layer.unshard()
    try:
        yield
    finally:
        for layer in layers:
            layer.reshard()
            layer.set_reshard_after_forward(True)
