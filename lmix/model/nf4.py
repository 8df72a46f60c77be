"""4-bit NF4 layers. Only this file imports bitsandbytes."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def is_4bit(layer: nn.Module) -> bool:
    """Whether this is a 4-bit layer of bitsandbytes. Looks at the layer's state, as sharding drops the weight's."""
    return isinstance(layer, nn.Linear) and getattr(layer, "quant_state", None) is not None


def dequantize(layer: Any) -> Tensor:
    """A 4-bit layer's weight `[out_features, in_features]` in its compute dtype."""
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(layer.weight.data, layer.quant_state).to(layer.compute_dtype)


def quantize_linears(model: PreTrainedModel, double_quantization: bool, dtype: torch.dtype) -> None:
    """Replace all linear layers but the head by NF4 layers, in place.

    For weights that transformers can't quantise while it loads them (.gguf, FP8, MXFP4).
    """
    import bitsandbytes as bnb

    head = model.get_output_embeddings()
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is not nn.Linear or layer is head:
                continue
            four_bit = bnb.nn.modules.Linear4bit(
                layer.in_features,
                layer.out_features,
                bias=layer.bias is not None,
                compute_dtype=dtype,
                compress_statistics=double_quantization,
                quant_type="nf4",
                quant_storage=torch.uint8,
            )
            # quantised when it is moved to its device
            four_bit.weight = bnb.nn.modules.Params4bit(
                layer.weight.data,
                requires_grad=False,
                module=four_bit,  # pyright: ignore[reportCallIssue]  # gives it the 4-bit state
                compress_statistics=double_quantization,  # pyright: ignore[reportCallIssue]
                quant_type="nf4",  # pyright: ignore[reportCallIssue]
                quant_storage=torch.uint8,  # pyright: ignore[reportCallIssue]
            )
            four_bit.bias = layer.bias
            setattr(parent, name, four_bit)
    model.is_loaded_in_4bit = True  # pyright: ignore[reportArgumentType]  # peft reads it
