"""Checkpoints that are already quantised: how they are loaded, and advice for those that can't be."""

from typing import Any

import torch
from transformers import FineGrainedFP8Config, PretrainedConfig, PreTrainedModel
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from transformers.utils.quantization_config import Mxfp4Config

DEQUANTIZED = {"fp8": FineGrainedFP8Config, "mxfp8": FineGrainedFP8Config, "mxfp4": Mxfp4Config}
"""Methods that transformers can dequantise to plain weights on every device, without further packages. Their own
kernels run on some GPUs only, are downloaded from the hub, and round activations depending on the batch."""


def quantization_method(config: PretrainedConfig) -> str | None:
    """The quantisation method of a checkpoint, such as `gptq`; None if it is not quantised."""
    settings: Any = getattr(config, "quantization_config", None)
    if settings is None:
        return None
    settings = settings if isinstance(settings, dict) else settings.to_dict()
    method = settings.get("quant_method")
    return str(getattr(method, "value", method))


def loading_arguments(method: str) -> dict[str, Any]:
    """Arguments of `from_pretrained` for a checkpoint quantised by `method`.

    Raises:
        ValueError: transformers does not know the method, and would read its weights as if they were plain numbers.
    """
    if method not in AUTO_QUANTIZER_MAPPING and method != "bitsandbytes":
        raise ValueError(f"this version of transformers does not support quantization_config.quant_method {method!r}")
    return {"quantization_config": DEQUANTIZED[method](dequantize=True)} if method in DEQUANTIZED else {}


def way_out(method: str | None) -> str:
    """Advice about a quantised checkpoint that can't be loaded, to append to an error message."""
    if method is None:
        return ""
    return (
        f" (its weights are quantised by {method}: install the packages that it needs, or give the model's unquantised "
        "checkpoint, which backbone.quantization=nf4 quantises)"
    )


def set_compute_dtype(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Make bitsandbytes' layers compute in the run's dtype, whatever dtype their checkpoint names."""
    for module in model.modules():
        if hasattr(module, "compute_dtype"):
            module.compute_dtype = dtype  # pyright: ignore[reportArgumentType]
