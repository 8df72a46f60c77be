"""Load the frozen backbone: bf16, fp32, or 4-bit NF4 by bitsandbytes. Only this file knows bitsandbytes."""

import hashlib
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PretrainedConfig, PreTrainedModel

from lmix.model.tokenizer import first_line, hub_arguments, load_config

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class BackboneConfig:
    """Which model, and in which precision it is held."""

    path: str = "lmix:tiny-arithmetic"
    """Hub id, local folder, .gguf file, or an embedded model as lmix:NAME."""
    quantization: Literal["nf4", "none"] = "nf4"
    """nf4 holds the linear layers in 4 bits (bitsandbytes, QLoRA); none holds them in `dtype`."""
    double_quantization: bool = True
    """Quantise nf4's scales once more (about 0.4 bits a weight less)."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """What the matmuls compute in, and what unquantised weights are held in. CPUs without bf16 units want float32."""
    activation_checkpointing: bool = False
    """Recompute each decoder layer in the backward pass: less memory, more time. Rollouts are untouched."""

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]


def load_backbone(config: BackboneConfig, device: torch.device | str = "cpu") -> PreTrainedModel:
    """Read the weights, and quantise them.

    Raises:
        ValueError: the path holds no causal language model, or the model can't be read.
    """
    where, arguments = hub_arguments(config.path)
    model_config = load_config(config.path)
    attention_kinds(model_config)
    arguments |= {"dtype": config.torch_dtype, "attn_implementation": attention_for(model_config)}
    if config.quantization == "nf4" and "gguf_file" not in arguments:
        arguments |= {
            "device_map": {"": str(device)},
            "quantization_config": BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=config.double_quantization,
                bnb_4bit_compute_dtype=config.torch_dtype,
                # torch_dtype storage would be cast by bf16 trainer precision, and so corrupted
                bnb_4bit_quant_storage=torch.uint8,
            ),
        }
    try:
        model = AutoModelForCausalLM.from_pretrained(where, **arguments)
    except (OSError, ValueError) as error:
        raise ValueError(f"backbone {config.path!r} can't be loaded: {first_line(error)}") from error
    if config.quantization == "nf4" and "gguf_file" in arguments:
        quantize_linears(model, config)
    return nn.Module.to(model, device)  # pyright: ignore[reportReturnType]


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
    model.eval()


def quantize_linears(model: PreTrainedModel, config: BackboneConfig) -> None:
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
                compute_dtype=config.torch_dtype,
                compress_statistics=config.double_quantization,
                quant_type="nf4",
                quant_storage=torch.uint8,
            )
            # quantised when it is moved to its device
            four_bit.weight = bnb.nn.modules.Params4bit(
                layer.weight.data,
                requires_grad=False,
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


def fingerprint(model: PreTrainedModel) -> str:
    """A checksum of the norms and biases, which no quantisation touches: the same model in any precision has the same,
    wherever its files lie. Another model has another, but not a finetune that left norms and biases alone (a merged
    LoRA)."""
    digest = hashlib.sha256()
    for parameter in model.parameters():
        if parameter.dim() == 1 and parameter.is_floating_point():
            digest.update(parameter.detach().to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def attention_for(config: PretrainedConfig) -> str:
    """The attention implementation: torch's fused one, except where the model caps its scores (Gemma 2)."""
    return "eager" if getattr(config, "attn_logit_softcapping", None) else "sdpa"
