# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""LoRA of every stream on vLLM's linear layers, in buffers that are written in place, so that CUDA graphs stay valid.

Legend: K streams, N tokens, r rank, D_in and D_out features.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from torch import Tensor, nn
from vllm.model_executor.layers.linear import LinearBase, LinearMethodBase, QKVParallelLinear, RowParallelLinear

PREFIX, A, B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"


class StackedLoRA(nn.Module):
    """The LoRA of K streams on one layer, each applied to its stream's block of rows.

    vLLM packs layers that read the same input (query, key and value; gate and up) into one. Their A factors are
    stacked, and B is block-diagonal.

    Args:
        pieces: output features of each packed layer on this tensor-parallel rank.
        width: D_in on this tensor-parallel rank.
        rank: the largest r.
        streams: K.
        dtype: dtype of the factors.
    """

    def __init__(self, pieces: list[int], width: int, rank: int, streams: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.pieces, self.rank = pieces, rank
        self.a: Tensor
        self.b: Tensor
        self.register_buffer("a", torch.zeros(streams, rank * len(pieces), width, dtype=dtype), persistent=False)
        self.register_buffer("b", torch.zeros(streams, rank * len(pieces), sum(pieces), dtype=dtype), persistent=False)

    def write(self, stream: int, piece: int, a: Tensor, b: Tensor) -> None:
        """Copy A `[r, D_in]` and the scaled B `[D_out, r]` of one packed layer. The stream must be zero before."""
        ranks = slice(piece * self.rank, (piece + 1) * self.rank)
        start = sum(self.pieces[:piece])
        a_block = self.a[stream, ranks]
        b_block = self.b[stream, ranks, start : start + self.pieces[piece]]
        for block, values in ((a_block, a), (b_block, b.t())):
            block[: len(values)].copy_(values)

    def forward(self, out: Tensor, x: Tensor) -> Tensor:
        """`out [K * N, D_out]`, with each stream's product of `x [K * N, D_in]` added."""
        streams = self.a.shape[0]
        inner = torch.bmm(x.unflatten(0, (streams, -1)), self.a.transpose(1, 2))
        return torch.baddbmm(out.unflatten(0, (streams, -1)), inner, self.b).flatten(0, 1)


class StackedLoRAMethod(LinearMethodBase):
    """Applies a layer's own method, then the streams' LoRA, before the outputs of tensor-parallel ranks are summed."""

    def __init__(self, base: Any) -> None:
        self.base = base

    def __getattr__(self, name: str) -> Any:  # vLLM's loaders read attributes of the layer's own method
        return getattr(self.__dict__["base"], name)

    def create_weights(self, *_: Any, **__: Any) -> None:
        raise AssertionError("the layer has its weights already")

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        self.base.process_weights_after_loading(layer)

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return layer.lora(self.base.apply(layer, x, bias), x)


class LoRATable:
    """Maps each adapted layer of the checkpoint to its layer in vLLM's model.

    Args:
        model: vLLM's decoder.
        packed: vLLM's name of a packed layer -> the names of its pieces.
        wanted: names in the checkpoint of all layers that any stream adapts.
        rank: the largest r of any stream.
        streams: K.

    Raises:
        ValueError: a layer that is not a linear layer of that name in vLLM's model.
    """

    def __init__(
        self, model: nn.Module, packed: Mapping[str, list[str]], wanted: set[str], rank: int, streams: int
    ) -> None:
        self.rank = rank
        self.places: dict[str, tuple[Any, int]] = {}
        for name, module in model.named_modules():
            if not isinstance(module, LinearBase):
                continue
            layer: Any = module
            parent, _, last = name.rpartition(".")
            parts = [f"{parent}.{part}" for part in packed.get(last, [last])]
            if not wanted & set(parts):
                continue
            pieces = list(getattr(layer, "output_partition_sizes", None) or [layer.output_size])
            width = getattr(layer, "input_size_per_partition", layer.input_size)
            layer.lora = StackedLoRA(pieces, width, rank, streams, layer.params_dtype)
            layer.quant_method = StackedLoRAMethod(layer.quant_method)
            self.places |= {part: (layer, piece) for piece, part in enumerate(parts)}
        if missing := sorted(wanted - set(self.places)):
            raise ValueError(
                f"an adapter changes {missing[0]}, which vLLM's {type(model).__name__} has no linear layer for: adapt "
                "the linear layers of attention and MLP only"
            )

    @torch.no_grad()
    def write(self, stream: int, config: LoraConfig, weights: Mapping[str, Tensor]) -> None:
        """Load a stream's adapter, with weights by peft's names. Layers that it does not adapt get zeros.

        Raises:
            ValueError: a rank above the largest one of the served folder, or a layer that no stream of that folder
                adapts. Nothing is changed then.
        """
        factors = {name: (weights[f"{PREFIX}{name}{A}"], weights[f"{PREFIX}{name}{B}"]) for name in adapted(weights)}
        if unknown := sorted(set(factors) - set(self.places)):
            raise ValueError(
                f"the adapter changes {unknown[0]}, which no stream of the served folder adapts: export again"
            )
        if (rank := largest_rank(weights)) > self.rank:
            raise ValueError(
                f"the adapter has rank {rank}, above the largest of the served folder, {self.rank}: export again with "
                "an adapter of that rank, and start vLLM from there"
            )
        for module in {id(module): module for module, _ in self.places.values()}.values():
            module.lora.a[stream].zero_()
            module.lora.b[stream].zero_()
        for name, (a, b) in factors.items():
            module, piece = self.places[name]
            a, b = rank_part(module, piece, a, b * scaling(config, name))
            module.lora.write(stream, piece, a, b)


def adapted(weights: Mapping[str, Tensor]) -> set[str]:
    """Names in the checkpoint of the layers that an adapter changes."""
    return {name.removeprefix(PREFIX).removesuffix(A) for name in weights if name.endswith(A)}


def largest_rank(weights: Mapping[str, Tensor]) -> int:
    return max(a.shape[0] for name, a in weights.items() if name.endswith(A))


def scaling(config: LoraConfig, name: str) -> float:
    """peft's scaling of a layer's low-rank product."""
    ranks, alphas = config.rank_pattern or {}, config.alpha_pattern or {}
    rank = ranks.get(get_pattern_key(list(ranks), name), config.r)
    alpha = alphas.get(get_pattern_key(list(alphas), name), config.lora_alpha)
    return alpha / (math.sqrt(rank) if config.use_rslora else rank)


def rank_part(module: Any, piece: int, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """A tensor-parallel rank's part: columns of A if the layer's input is split, rows of B if its output is split."""
    if module.tp_size == 1:
        return a, b
    if isinstance(module, RowParallelLinear):
        width = module.input_size_per_partition
        return a[:, module.tp_rank * width : (module.tp_rank + 1) * width], b
    rank, size = module.tp_rank, module.output_partition_sizes[piece]
    if isinstance(module, QKVParallelLinear) and piece > 0:
        rank //= module.num_kv_head_replicas
    return a, b[rank * size : (rank + 1) * size]
