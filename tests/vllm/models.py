"""Tiny models that vLLM's CPU kernels take (heads of 32), as folders that `lmix export` would write."""

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import (
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from lmix.model.adapters import AdapterConfig
from lmix.model.backbone import BackboneConfig
from lmix.model.causal_lm import MixedPolicyForCausalLM
from lmix.model.mixed_policy import MixedPolicy
from lmix.model.mixture import Mixture
from lmix.model.sources import resolve
from lmix.rollout.types import Prompt
from tests.conftest import prompts, randomise_adapters, tokens

SHAPE = {
    "vocab_size": 96,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
    "initializer_range": 0.2,
}
WINDOW = {"head_dim": 32, "sliding_window": 24}
ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention"]
ARCHITECTURES = {
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SHAPE)),
    "llama": (LlamaForCausalLM, LlamaConfig(**SHAPE)),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**SHAPE, head_dim=32)),
    "mistral": (MistralForCausalLM, MistralConfig(**SHAPE, **WINDOW)),
    "gemma2": (
        Gemma2ForCausalLM,
        Gemma2Config(**SHAPE, **WINDOW, layer_types=ALTERNATING, query_pre_attn_scalar=32, final_logit_softcapping=3.0),
    ),
    "gemma3": (
        Gemma3ForCausalLM,
        Gemma3TextConfig(**SHAPE, **WINDOW, layer_types=ALTERNATING, query_pre_attn_scalar=32),
    ),
}
LENGTHS = (1, 5, 17, 33, 64, 130, 300)
"""Of the prompts: beyond a block of vLLM's cache, 128 tokens on a CPU."""
PROMPTS: list[Prompt] = prompts(*(tokens(length, seed=length).tolist() for length in LENGTHS))


def backbone_folder(architecture: str, folder: Path) -> Path:
    """A random model with the embedded model's tokenizer, in float32."""
    if not folder.exists():
        model_class, config = ARCHITECTURES[architecture]
        torch.manual_seed(1)
        model_class._from_config(copy.deepcopy(config)).save_pretrained(folder)
        AutoTokenizer.from_pretrained(resolve("lmix:tiny-arithmetic")).save_pretrained(folder)
    return folder


def mixed_model(
    backbone: Path, mixture: Mixture, rank: int = 4, seed: int = 2, quantization: str = "none", dtype: str = "float32"
) -> MixedPolicyForCausalLM:
    """Random adapters on a backbone, one for each of the mixture's streams."""
    config = BackboneConfig(str(backbone), quantization, dtype=dtype)  # pyright: ignore[reportArgumentType]
    root = backbone.parent / f"{backbone.name}-frozen"
    frozen = [str(frozen_adapter(config, root / str(k), k)) for k in range(1, len(mixture.weights))]
    policy = MixedPolicy.from_pretrained(config, AdapterConfig(frozen[0], None, frozen[1:], rank=rank))
    torch.manual_seed(seed)
    for name, parameter in policy.named_parameters():
        if ".lora_" in name and ".policy." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return MixedPolicyForCausalLM.from_policy(policy, mixture, config)


def frozen_adapter(backbone: BackboneConfig, folder: Path, seed: int) -> Path:
    """A random adapter of another rank on some of the layers, with a scaling of its own by layer."""
    if not folder.exists():
        adapters = AdapterConfig(rank=2 + seed, lora_alpha=3, target_modules=["q_proj", "v_proj", "down_proj"])
        policy = randomise_adapters(MixedPolicy.from_pretrained(backbone, adapters), seed, 0.2)
        policy.save_policy(folder)
    return folder


def exported(model: MixedPolicyForCausalLM, folder: Path) -> Path:
    """The folder, with a tokenizer beside it."""
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model.config.backbone["path"]).save_pretrained(folder)
    return folder


def next_policy(model: MixedPolicyForCausalLM, folder: Path, seed: int = 9) -> Path:
    """Give the policy other values, and write them as an adapter."""
    torch.manual_seed(seed)
    for parameter in model.policy.policy_parameters():
        torch.nn.init.normal_(parameter.data, std=0.1)
    model.policy.save_policy(folder)
    return folder


def mixtures(alphas: Sequence[float]) -> list[Mixture]:
    return [Mixture.at(alpha) for alpha in alphas]
