"""Checkpoints that are quantised already: how they are loaded, and what is said of those that can't be."""

from typing import Any

import torch
from transformers import FineGrainedFP8Config, PretrainedConfig, PreTrainedModel
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from transformers.utils.quantization_config import Mxfp4Config

DEQUANTIZED = {"fp8": FineGrainedFP8Config, "mxfp8": FineGrainedFP8Config, "mxfp4": Mxfp4Config}
"""Methods that transformers unpacks to plain weights with no further package, on every device. Their own kernels are
for some GPUs only, come from the hub and round activations by the batch that they are in."""


def quantization_method(config: PretrainedConfig) -> str | None:
    """What a checkpoint says that it is quantised by, such as `gptq`; None where its weights are plain numbers."""
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
        raise ValueError(f"this version of transformers does not know quantization_config.quant_method {method!r}")
    return {"quantization_config": DEQUANTIZED[method](dequantize=True)} if method in DEQUANTIZED else {}


def way_out(method: str | None) -> str:
    """What a user can do about a quantised checkpoint that does not load, as the end of an error's line."""
    if method is None:
        return ""
    return (
        f" (its weights are quantised by {method}: install what that needs, or give the model's unquantised "
        "checkpoint, which backbone.quantization=nf4 quantises)"
    )


def set_compute_dtype(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Let bitsandbytes' layers compute in the run's dtype, whatever their checkpoint was saved with."""
    for module in model.modules():
        if hasattr(module, "compute_dtype"):
            module.compute_dtype = dtype  # pyright: ignore[reportArgumentType]
