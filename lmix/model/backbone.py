"""Load the backbone: bf16, fp32, or 4-bit NF4 by bitsandbytes."""

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
    """Which model, and in which precision it is held."""

    path: str = "lmix:tiny-arithmetic"
    """Hub id, local folder, .gguf file, or an embedded model as lmix:NAME."""
    quantization: Literal["nf4", "none"] = "nf4"
    """nf4 holds the linear layers in 4 bits (bitsandbytes, QLoRA); none holds them in `dtype`. A checkpoint that is
    quantised already stays as it is (FP8 and MXFP4 are unpacked first, to be held as this says)."""
    double_quantization: bool = True
    """Quantise nf4's scales once more (about 0.4 bits a weight less)."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What the matmuls compute in, and what unquantised weights are held in; auto: bfloat16 where the device has units
    for it (a CPU without them is several times slower in it), or else float32."""
    dense_rollouts: bool | None = None
    """During rollouts keep a dequantised copy of a 4-bit backbone too, instead of dequantising it at each token: 2
    (bfloat16) or 4 (float32) bytes a weight more. null: where that is less than half of the memory that rank 0 has free
    before the first step, decided once a run."""
    activation_checkpointing: bool = False
    """Recompute each decoder layer in the backward pass: less memory, more time. Rollouts are untouched."""


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
    """Where a model goes when nothing is said: a GPU, where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_backbone(config: BackboneConfig, device: torch.device | str = "cpu") -> PreTrainedModel:
    """Read the weights, and quantise them.

    Raises:
        ValueError: the path holds no causal language model, or the model can't be read.
    """
    where, arguments = hub_arguments(config.path)
    model_config = load_config(config.path)
    attention_kinds(model_config)
    dtype = compute_dtype(config.dtype, device)
    method = quantization_method(model_config)
    # transformers can quantise plain weights while it reads them, but not those that it unpacks
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
                # torch_dtype storage would be cast by bf16 trainer precision, and so corrupted
                bnb_4bit_quant_storage=torch.uint8,
            ),
        }
    with one_line_errors(f"backbone {config.path!r} can't be loaded", way_out(method)), without_vocabulary():
        loaded: Any = AutoModelForCausalLM.from_pretrained(where, output_loading_info=True, **arguments)
        model, info = loaded
    if missing := sorted(info["missing_keys"]):  # transformers warns, and gives them random values
        raise ValueError(
            f"backbone {config.path!r} can't be loaded: its files lack {missing[0]} ({len(missing)} such)"
            + way_out(method)
        )
    model.files_digest = weights_digest(where, arguments.get("gguf_file"))  # for `fingerprint`
    set_compute_dtype(model, dtype)
    if config.quantization == "nf4" and unpacked:
        quantize_linears(model, config.double_quantization, dtype)
    return nn.Module.to(model, device)  # pyright: ignore[reportReturnType]


def skeleton(config: PretrainedConfig) -> PreTrainedModel:
    """A causal LM of names and shapes alone, on the meta device."""
    with one_line_errors(f"backbone of type {config.model_type!r} can't be made"), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trusts_code())


def fingerprint(model: PreTrainedModel) -> str:
    """What tells one backbone from another, as `PARTS` or `PARTS-FILES`.

    PARTS is a checksum of the norms and biases, which no quantisation touches: the same model in any precision has the
    same, wherever its files lie. FILES is one of all weights as the files have them, which finetunes of the same model
    differ in, and is there where `load_backbone` has read files.
    """
    digest = hashlib.sha256()
    for parameter in model.parameters():
        if parameter.dim() == 1 and parameter.is_floating_point():
            digest.update(parameter.detach().to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes())
    own, files = digest.hexdigest()[:16], getattr(model, "files_digest", None)
    return own if files is None else f"{own}-{files}"
