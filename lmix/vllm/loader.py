# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""Load the backbone's weights from their own path, because an exported folder holds adapters only."""

import copy
from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

from lmix.model.sources import hub_arguments, load_config

LOAD_FORMAT = "lmix"


@register_model_loader(LOAD_FORMAT)
class BackboneLoader(DefaultModelLoader):
    """vLLM's safetensors loader, for the backbone that the exported folder names."""

    def __init__(self, load_config: Any) -> None:
        plain = copy.copy(load_config)
        plain.load_format = "auto"
        super().__init__(plain)

    def download_model(self, model_config: Any) -> None:
        path, _ = hub_arguments(model_config.hf_config.backbone["path"])
        self._prepare_weights(path, None, None, True, None)

    def get_all_weights(self, model_config: Any, model: nn.Module) -> Generator[tuple[str, Tensor], None, None]:
        backbone = model_config.hf_config.backbone
        path, _ = hub_arguments(backbone["path"])
        weights = self._get_weights_iterator(self.Source(path, None))
        if backbone["quantization"] != "nf4":
            yield from weights
            return
        in_4_bits = nf4_weights(load_config(backbone["path"]))
        for name, weight in weights:
            if name in in_4_bits:
                weight = nf4_values(weight.to(model_config.dtype), backbone["double_quantization"])
            yield name, weight


def nf4_weights(config: PretrainedConfig) -> set[str]:
    """Names of the weights that `backbone.quantization=nf4` quantises: those of all linear layers but the head."""
    from lmix.model.backbone import skeleton

    model = skeleton(config)
    head = model.get_output_embeddings()
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    return {f"{name}.weight" for name, layer in layers if layer is not head}


def nf4_values(weight: Tensor, double_quantization: bool) -> Tensor:
    """A weight rounded to its NF4 values, in its own dtype: the values that the policy was trained with."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    with torch.no_grad():
        four_bit, state = quantize_4bit(
            weight.contiguous(), quant_type="nf4", compress_statistics=double_quantization, quant_storage=torch.uint8
        )
        return dequantize_4bit(four_bit, state).to(weight.dtype)
