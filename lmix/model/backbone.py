"""Load the frozen backbone: bf16, fp32, or 4-bit NF4 by bitsandbytes. Only this file knows bitsandbytes."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import psutil
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PretrainedConfig, PreTrainedModel

from lmix.model.errors import one_line_errors
from lmix.model.gguf_reader import without_vocabulary
from lmix.model.linear import linear
from lmix.model.prequantized import DEQUANTIZED, loading_arguments, quantization_method, set_compute_dtype, way_out
from lmix.model.source_digest import weights_digest
from lmix.model.tokenizer import hub_arguments, load_config, trusts_code

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
    """Hold a 4-bit backbone's weights dequantised as well while completions are drawn, and not dequantise them at each
    token: 2 (bfloat16) or 4 (float32) bytes a weight more. null: where that is less than half of the memory that rank 0
    has free before the first step, decided once a run."""
    activation_checkpointing: bool = False
    """Recompute each decoder layer in the backward pass: less memory, more time. Rollouts are untouched."""


def dtype_name(name: str, device: torch.device | str) -> Literal["float32", "bfloat16"]:
    """The dtype that `BackboneConfig.dtype` stands for on a device."""
    if name != "auto":
        return name  # pyright: ignore[reportReturnType]
    if torch.device(device).type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()
        fast = any(capabilities.get(unit) for unit in ("avx512_bf16", "amx_bf16", "bf16"))
    return "bfloat16" if fast else "float32"


def compute_dtype(name: str, device: torch.device | str) -> torch.dtype:
    """The same as torch's."""
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
        model, info = AutoModelForCausalLM.from_pretrained(where, output_loading_info=True, **arguments)
    if missing := sorted(info["missing_keys"]):  # transformers warns, and gives them random values
        raise ValueError(
            f"backbone {config.path!r} can't be loaded: its files lack {missing[0]} ({len(missing)} such)"
            + way_out(method)
        )
    model.files_digest = weights_digest(where, arguments.get("gguf_file"))  # for `fingerprint`
    set_compute_dtype(model, dtype)
    if config.quantization == "nf4" and unpacked:
        quantize_linears(model, config, dtype)
    return nn.Module.to(model, device)  # pyright: ignore[reportReturnType]


def skeleton(config: PretrainedConfig) -> PreTrainedModel:
    """A causal LM of names and shapes alone, on the meta device."""
    with one_line_errors(f"backbone of type {config.model_type!r} can't be made"), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trusts_code())


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
        if type(module) is nn.Linear or is_4bit(module):  # other kinds have products of their own
            module.dense = None  # pyright: ignore[reportArgumentType]
            module.forward = partial(frozen_forward, module)  # pyright: ignore[reportAttributeAccessIssue]
    model.eval()


def frozen_forward(layer: Any, x: Tensor) -> Tensor:
    """A frozen linear layer, 4-bit or not: `[..., in_features]` -> `[..., out_features]`."""
    if not is_4bit(layer):
        return linear(x, layer.weight, layer.bias)
    if layer.dense is None and (torch.is_grad_enabled() or x.device.type != "cpu"):
        return type(layer).forward(layer, x)  # bitsandbytes' own: it keeps no dequantised weight for the backward pass
    weight = dequantize(layer) if layer.dense is None else layer.dense
    return linear(x.to(weight.dtype), weight, layer.bias).to(x.dtype)


def is_4bit(layer: nn.Module) -> bool:
    """Whether it is bitsandbytes' layer; the 4-bit state is taken from it, as sharding takes it from the weight."""
    return isinstance(layer, nn.Linear) and getattr(layer, "quant_state", None) is not None


def dequantize(layer: Any) -> Tensor:
    """A 4-bit layer's weight `[out_features, in_features]` in its compute dtype."""
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(layer.weight.data, layer.quant_state).to(layer.compute_dtype)


@contextmanager
def dequantized(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Within, 4-bit layers compute from a dequantised copy, without gradient. Values are the same on a CPU; on a GPU
    they round as a dense product does and not as bitsandbytes' own kernels."""
    layers: list[Any] = [m for m in model.modules() if is_4bit(m)]
    try:
        for layer in layers if wanted else []:
            layer.dense = dequantize(layer)
        yield
    finally:
        for layer in layers:
            layer.dense = None


def has_4bit(model: nn.Module) -> bool:
    return any(is_4bit(m) for m in model.modules())


def dense_copy_fits(model: nn.Module, device: torch.device) -> bool:
    """Whether a dequantised copy of a model's 4-bit layers takes less than half of a device's free memory."""
    layers: list[Any] = [m for m in model.modules() if is_4bit(m)]
    size = sum(layer.in_features * layer.out_features * layer.compute_dtype.itemsize for layer in layers)
    return copy_fits(size, free_memory(device))


def copy_fits(size: float, free: float) -> bool:
    """What `dense_rollouts: null` decides by, in bytes."""
    return size < free / 2


def free_memory(device: torch.device) -> int:
    """Bytes that a device has to spare, or the machine for each of its ranks."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def quantize_linears(model: PreTrainedModel, config: BackboneConfig, dtype: torch.dtype) -> None:
    """Replace the body's linear layers by NF4 ones in place: for .gguf files, which transformers can't quantise."""
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
                compress_statistics=config.double_quantization,
                quant_type="nf4",
                quant_storage=torch.uint8,
            )
            # quantised when it is moved to its device
            four_bit.weight = bnb.nn.modules.Params4bit(
                layer.weight.data,
                requires_grad=False,
                module=four_bit,  # pyright: ignore[reportCallIssue]  # gives it the 4-bit state
                compress_statistics=config.double_quantization,  # pyright: ignore[reportCallIssue]
                quant_type="nf4",  # pyright: ignore[reportCallIssue]
                quant_storage=torch.uint8,  # pyright: ignore[reportCallIssue]
            )
            four_bit.bias = layer.bias
            setattr(parent, name, four_bit)
    model.is_loaded_in_4bit = True  # pyright: ignore[reportArgumentType]  # peft looks at it


def attention_kinds(config: PretrainedConfig) -> list[str]:
    """What each kind of layer attends to: `full_attention`, or `sliding_attention` over the newest `sliding_window`.

    Raises:
        ValueError: the backbone has layers of another kind, whose state lmix can't keep for each row.
    """
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention" if window is None else "sliding_attention"])
    if unknown := kinds - {"full_attention", "sliding_attention"}:
        kind = getattr(config, "model_type", None)
        raise ValueError(
            f"backbone of type {kind!r} has layers of kind {min(unknown)}: lmix samples from models whose layers "
            "have full or sliding-window attention only"
        )
    return sorted(kinds)


def attention_masks(
    config: PretrainedConfig, seen: Tensor, queries: Tensor, keys: Tensor, dtype: torch.dtype
) -> Tensor | dict[str, Tensor]:
    """Masks `[B, 1, T, L]` as the decoder wants them: one, or one for each kind of layer.

    Args:
        seen: `[B, T, L]`, true where a query may attend to a key by causality.
        queries: `[B, T, 1]`, their places; a window reaches `sliding_window` of them back.
        keys: `[B, 1, L]`, theirs.
        dtype: of the additive masks that eager attention takes (0, or the dtype's minimum); others take booleans.
    """
    masks = {"full_attention": seen}
    kinds = attention_kinds(config)
    if "sliding_attention" in kinds:
        masks["sliding_attention"] = seen & (queries - keys < config.sliding_window)  # pyright: ignore
    found = {}
    for kind in kinds:
        mask = masks[kind][:, None]
        if config._attn_implementation == "eager":
            mask = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)
        found[kind] = mask
    return found if len(found) > 1 else found[kinds[0]]


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


def attention_for(config: PretrainedConfig) -> str:
    """The attention implementation: torch's fused one, except where the model caps its scores (Gemma 2)."""
    return "eager" if getattr(config, "attn_logit_softcapping", None) else "sdpa"
