"""The frozen backbone's linear layers: their forward pass, and a dequantised copy of 4-bit weights for rollouts."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lmix.model.linear import linear
from lmix.model.nf4 import dequantize, is_4bit


def freeze_backbone(model: PreTrainedModel) -> None:
    """Freeze a causal LM in place, and make its forward pass the same in sampling and in training."""
    model.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # any dropout makes the ratio of eq. 5 wrong
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # pyright: ignore[reportArgumentType]
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # after one inference pass this kernel repacks the weights, and then silently gives no gradient
            module.support_avx512bf16_for_cpu = False  # pyright: ignore[reportArgumentType]
        if type(module) is nn.Linear or is_4bit(module):  # other kinds keep their own forward pass
            module.dense = module.packed = None  # pyright: ignore[reportArgumentType]
            module.forward = partial(frozen_forward, module)  # pyright: ignore[reportAttributeAccessIssue]
    model.eval()


def frozen_forward(layer: Any, x: Tensor) -> Tensor:
    """A frozen linear layer, 4-bit or not: `[..., in_features]` -> `[..., out_features]`."""
    if layer.packed is not None:
        return layer.packed(x, ())
    if not is_4bit(layer):
        return linear(x, layer.weight, layer.bias)
    if layer.dense is None and (torch.is_grad_enabled() or x.device.type != "cpu"):
        return type(layer).forward(layer, x)  # bitsandbytes' own: it keeps no dequantised weight for the backward pass
    weight = dequantize(layer) if layer.dense is None else layer.dense
    return linear(x.to(weight.dtype), weight, layer.bias).to(x.dtype)


@contextmanager
def dequantized(model: nn.Module, wanted: bool, keep: bool = False) -> Iterator[None]:
    """Inside this context, 4-bit layers use a dequantised copy of their weights, without gradient.

    The results are the same on a CPU. On a GPU they round like a dense matmul and not like bitsandbytes' kernels.

    Args:
        model: changed in place.
        wanted: make the copies; false leaves the layers as they are.
        keep: keep the copies after the context.
    """
    layers = four_bit_layers(model)
    try:
        for layer in layers if wanted else []:
            if layer.dense is None:
                layer.dense = dequantize(layer)
        yield
    finally:
        for layer in layers if not keep else []:
            layer.dense = None


def four_bit_layers(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if is_4bit(module)]


def dense_copy_fits(model: nn.Module, device: torch.device) -> bool:
    """Whether a dequantised copy of a model's 4-bit layers takes less than half of a device's free memory."""
    return copy_fits(dense_bytes(model), free_memory(device))


def dense_bytes(model: nn.Module) -> int:
    """Bytes of a dequantised copy of a model's 4-bit layers."""
    layers = four_bit_layers(model)
    return sum(layer.in_features * layer.out_features * layer.compute_dtype.itemsize for layer in layers)


def copy_fits(size: float, free: float) -> bool:
    """Whether a copy takes less than half of the free bytes: the rule of `dense_rollouts: null`."""
    return size < free / 2


def give_back_memory(device: torch.device) -> None:
    """Return freed memory to the system between phases. glibc would keep gigabytes of it, which the next phase can't
    reuse because its tensors have other sizes."""
    if device.type != "cpu" or not sys.platform.startswith("linux"):
        return
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def free_memory(device: torch.device) -> int:
    """Free bytes of a GPU; on a CPU, those of the machine divided by its number of ranks."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
