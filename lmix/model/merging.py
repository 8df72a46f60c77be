"""Average adapters of one base in weight space, and fold an adapter into the base.

Legend: K adapters, R the sum of their ranks, r the rank that is kept.
"""

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from lmix.functional import low_rank_product
from lmix.model.adapters import lora_layers, read_adapter
from lmix.model.backbone import skeleton

PEFT = "base_model.model."
"""peft's prefix of layer names."""


@dataclass(frozen=True)
class LowRank:
    """An adapter's low-rank product on one layer, `scaling * b a`."""

    b: Tensor
    """`[D_out, r]`."""
    a: Tensor
    """`[r, D_in]`."""
    scaling: float = 1.0

    @property
    def delta(self) -> Tensor:
        """What it adds to the layer's weight, `[D_out, D_in]`, float32."""
        return (self.scaling * self.b.double() @ self.a.double()).float()


@dataclass(frozen=True)
class Merged:
    """An average of adapters."""

    layers: dict[str, LowRank]
    """The products by the layer's name in the base."""
    config: LoraConfig
    """peft's configuration for these layers."""
    error: float
    """Relative error of the reduced rank over all layers: norm of the rest over norm of the average; 0 if exact."""

    @property
    def rank(self) -> int:
        return self.config.r

    def peft_weights(self) -> dict[str, Tensor]:
        """Weights by their names in a peft folder, float32; layers of lower rank are padded with zeros."""
        weights = {}
        for name, layer in self.layers.items():
            missing = self.rank - layer.a.shape[0]
            b, a = layer.b.float() * layer.scaling, layer.a.float()
            weights[f"{PEFT}{name}.lora_A.weight"] = nn.functional.pad(a, (0, 0, 0, missing))
            weights[f"{PEFT}{name}.lora_B.weight"] = nn.functional.pad(b, (0, missing))
        return weights


def read_layers(path: str, base: PretrainedConfig) -> tuple[LoraConfig, dict[str, LowRank]]:
    """An adapter's configuration, and its products by layer with peft's scaling. Errors as in `read_adapter`."""
    config, weights = read_adapter(path)
    layers = {}
    for name, layer in lora_layers(get_peft_model(skeleton(base), config)):
        b, a = (weights[f"{PEFT}{name}.lora_{factor}.weight"] for factor in "BA")
        layers[name] = LowRank(b, a, float(layer.scaling["default"]))
    return config, layers


def merge_adapters(
    paths: Mapping[str, str], weights: Sequence[float], base: PretrainedConfig, rank: int | None
) -> Merged:
    """Average adapters in weight space: `sum_k w_k s_k B_k A_k` on each layer.

    On a layer that an adapter does not have, its product is zero.

    Args:
        paths: name of the setting -> the adapter's folder. All adapters must fit the base.
        weights: one for each adapter. The rest up to 1 is the weight of the base, whose product is zero.
        base: the base's configuration.
        rank: r; None keeps all R, which is exact.

    Raises:
        ValueError: a rank outside 1 to R.
    """
    read = {field: read_layers(path, base) for field, path in paths.items()}
    config = next(iter(read.values()))[0]
    names = list(dict.fromkeys(name for _, layers in read.values() for name in layers))
    if any(set(layers) != set(names) for _, layers in read.values()):
        config = deepcopy(config)
        config.target_modules = target_modules(names, base)
        config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
    stacked = {}
    for name in names:
        parts = [(w, layers[name]) for w, (_, layers) in zip(weights, read.values(), strict=True) if name in layers]
        scaled = [w * part.scaling * part.b.double() for w, part in parts]
        stacked[name] = LowRank(torch.cat(scaled, dim=1), torch.cat([part.a.double() for _, part in parts]))
    full = max(layer.a.shape[0] for layer in stacked.values())
    if rank is not None and not 1 <= rank <= full:
        raise ValueError(
            f"rank must be from 1 to {full}, not {rank} ({full}, the sum of the adapters' ranks, is already exact)"
        )
    merged, left, whole = {}, 0.0, 0.0
    for name, layer in stacked.items():
        if rank is not None and rank < layer.a.shape[0]:
            b, a, rest = low_rank_product(layer.b, layer.a, rank)
            layer, left, whole = LowRank(b, a), left + rest, whole + rest
        merged[name], whole = layer, whole + _squared_norm(layer)
    return Merged(merged, _config(config, rank or full), math.sqrt(left / whole) if whole else 0.0)


@torch.no_grad()
def fold(model: PreTrainedModel, layers: Mapping[str, LowRank]) -> None:
    """Add an adapter's products to a model's weights, in place. Sums are computed in float32 and rounded once."""
    modules: dict[str, Any] = dict(model.named_modules())
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    for name, layer in layers.items():
        module = modules[name]
        weight = module.weight.float() + layer.delta.to(module.weight.device)
        if module is head and module.weight is embeddings.weight:  # untie them, so that the embeddings do not change
            module.weight = nn.Parameter(weight.to(module.weight.dtype))
            model.config.tie_word_embeddings = False
        else:
            module.weight.copy_(weight)


def target_modules(names: Sequence[str], base: PretrainedConfig) -> list[str]:
    """peft's setting for exactly these layers: the last parts of their names if these suffice, or whole names."""
    ends = {name.rpartition(".")[2] for name in names}
    matched = {name for name, _ in skeleton(base).named_modules() if name.rpartition(".")[2] in ends}
    return sorted(ends if matched == set(names) else names)


def _config(like: LoraConfig, rank: int) -> LoraConfig:
    """Configuration of an adapter on the same layers, with one rank and scaling 1."""
    config = deepcopy(like)
    config.r = config.lora_alpha = rank
    config.rank_pattern, config.alpha_pattern, config.use_rslora = {}, {}, False
    return config


def _squared_norm(layer: LowRank) -> float:
    """Squared Frobenius norm of a product, without forming it."""
    return float(((layer.b.mT @ layer.b) * (layer.a @ layer.a.mT)).sum())
