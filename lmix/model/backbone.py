"""Load the backbone in bf16, fp32, or 4-bit NF4 (bitsandbytes)."""

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PretrainedConfig, PreTrainedModel

from lmix.errors import one_line_errors
from lmix.model.attention import attention_for, attention_kinds
from lmix.model.gguf_reader import without_vocabulary
from lmix.model.nf4 import quantize_linears
from lmix.model.prequantized import DEQUANTIZED, loading_arguments, quantization_method, set_compute_dtype, way_out
from lmix.model.source_digest import weights_digest
from lmix.model.sources import hub_arguments, load_config, trusts_code

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class BackboneConfig:
    """Which model, and the precision of its weights."""

    path: str = "lmix:tiny-arithmetic"
    """Hub id, local folder, .gguf file, or an embedded model such as lmix:tiny-arithmetic."""
    quantization: Literal["nf4", "none"] = "nf4"
    """nf4: linear layers in 4 bits (bitsandbytes, as in QLoRA); none: linear layers in `dtype`. A checkpoint that is
    already quantised keeps its format, except FP8 and MXFP4, which are dequantised first and then follow this
    setting."""
    double_quantization: bool = True
    """Quantise NF4's scales as well, which saves about 0.4 bits a weight."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """dtype of matmuls and of unquantised weights. auto: bfloat16 if the device has hardware for it (a CPU without it
    is several times slower in bfloat16), otherwise float32."""
    dense_rollouts: bool | None = None
    """Keep a dequantised copy of a 4-bit backbone during rollouts, instead of dequantising it at each token. The copy
    takes 2 (bfloat16) or 4 (float32) bytes a weight. null: keep it if it takes less than half of the memory that rank 0
    has free before the first step; this is decided once a run."""
    activation_checkpointing: bool = False
    """Recompute each decoder layer in the backward pass: less memory, more time. Rollouts are not affected."""


def dtype_name(name: str, device: torch.device | str) -> Literal["float32", "bfloat16"]:
    """The dtype that `BackboneConfig.dtype` stands for on a device."""
    if name != "auto":
        return name  # pyright: ignore[reportReturnType]
    if torch.device(device).type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = has_bf16_units()
    return "bfloat16" if fast else "float32"


def has_bf16_units() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(unit) for unit in ("avx512_bf16", "amx_bf16", "bf16"))


def compute_dtype(name: str, device: torch.device | str) -> torch.dtype:
    """Like `dtype_name`, as a `torch.dtype`."""
    return DTYPES[dtype_name(name, device)]


def best_device() -> str:
    """The default device: a GPU if there is one, otherwise the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_backbone(config: BackboneConfig, device: torch.device | str = "cpu") -> PreTrainedModel:
    """Load a causal LM, quantised as configured.

    Raises:
        ValueError: the path holds no causal language model, or the model can't be read.
    """
    where, arguments = hub_arguments(config.path)
    model_config = load_config(config.path)
    attention_kinds(model_config)
    dtype = compute_dtype(config.dtype, device)
    method = quantization_method(model_config)
    # transformers can quantise plain weights while it loads them, but not weights that it dequantises
    unpacked = "gguf_file" in arguments or method in DEQUANTIZED
    arguments |= {"config": model_config, "dtype": dtype, "attn_implementation": attention_for(model_config)}
    if method is not None:
        with one_line_errors(f"backbone {config.path!r} can't be loaded", way_out(method)):
            arguments |= {"device_map": {"": str(device)}, **loading_arguments(method)}
    elif config.quantization == "nf4" and not unpacked:
        arguments |= {
            "device_map": {"": str(device)},
            "quantization_config": BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=config.double_quantization,
                bnb_4bit_compute_dtype=dtype,
                # the trainer's bf16-true precision would cast, and so corrupt, storage in a floating dtype
                bnb_4bit_quant_storage=torch.uint8,
            ),
        }
    with one_line_errors(f"backbone {config.path!r} can't be loaded", way_out(method)), without_vocabulary():
        loaded: Any = AutoModelForCausalLM.from_pretrained(where, output_loading_info=True, **arguments)
        model, info = loaded
    if missing := sorted(info["missing_keys"]):  # transformers only warns, and initialises them randomly
        raise ValueError(
            f"backbone {config.path!r} can't be loaded: its files lack {len(missing)} weights, such as {missing[0]}"
            + way_out(method)
        )
    model.files_digest = weights_digest(where, arguments.get("gguf_file"))  # for `fingerprint`
    set_compute_dtype(model, dtype)
    if config.quantization == "nf4" and unpacked:
        quantize_linears(model, config.double_quantization, dtype)
    return nn.Module.to(model, device)  # pyright: ignore[reportReturnType]


def skeleton(config: PretrainedConfig) -> PreTrainedModel:
    """A causal LM on the meta device: names and shapes, but no weights. Raises ValueError if it can't be built."""
    with one_line_errors(f"backbone of type {config.model_type!r} can't be built"), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trusts_code())


def fingerprint(model: PreTrainedModel) -> str:
    """Identify a backbone by checksums, as `PARTS` or `PARTS-FILES`.

    PARTS covers the norms and biases, which are never quantised: it is the same for a model in any precision and any
    location. FILES covers the weights in the files (see `weights_digest`), so that finetunes of one model differ. It is
    present if `load_backbone` could compute it.
    """
    digest = hashlib.sha256()
    for parameter in model.parameters():
        if parameter.dim() == 1 and parameter.is_floating_point():
            digest.update(parameter.detach().to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes())
    own, files = digest.hexdigest()[:16], getattr(model, "files_digest", None)
    return own if files is None else f"{own}-{files}"
