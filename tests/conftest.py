"""Tiny random models of four architectures, and mixed policies made of them."""

import copy
import os
from pathlib import Path

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from lmix.model.adapters import AdapterConfig, add_adapters, save_adapter
from lmix.model.attention import attention_for
from lmix.model.backbone import BackboneConfig
from lmix.model.mixed_policy import MixedPolicy
from lmix.model.mixture import Mixture
from lmix.model.streams import StreamRouter
from lmix.rollout.types import Prompt
from lmix.tasks import Problem
from tests.model.whole import merged_sft, other_size

os.environ["HF_HUB_OFFLINE"] = "1"
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", max(1, 2 // WORKERS))))
if WORKERS > 1:  # on two cores, threads that wait for one another slow all: those of what tests start too
    os.environ["OMP_NUM_THREADS"] = "1"


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


VOCABULARY = 96
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "initializer_range": 0.1,
}
WINDOWS = {"head_dim": 16, "sliding_window": 6}
ARCHITECTURES = {
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SHAPE)),
    "llama": (LlamaForCausalLM, LlamaConfig(**SHAPE)),
    "gemma3": (  # tied embeddings, sliding window
        Gemma3ForCausalLM,
        Gemma3TextConfig(**SHAPE, **WINDOWS, layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
    ),
    # every layer looks at a window, and the configuration has no list of layers that would say so
    "mistral": (MistralForCausalLM, MistralConfig(**SHAPE, **WINDOWS)),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config(**SHAPE, **WINDOWS, final_logit_softcapping=3.0)),  # caps its logits
}
EXACT = ["qwen2", "llama", "gemma3", "gemma2"]
ALL = [*EXACT, "qwen2-nf4", "llama-nf4"]
MIXED, PROBS = Mixture.at(0.3), Mixture.at(0.3, "probs")
MIXTURES = {"logits": MIXED, "probs": PROBS}


def tiny_model(architecture: str) -> PreTrainedModel:
    """A random model, the same for the same name."""
    model_class, config = ARCHITECTURES[architecture]
    config = copy.deepcopy(config)  # a model that is cast changes its own
    torch.manual_seed(1)
    return model_class._from_config(config, attn_implementation=attention_for(config)).eval()


def randomise_adapters(policy: MixedPolicy, seed: int = 2, scale: float = 0.1) -> MixedPolicy:
    """Give every LoRA matrix random values, so that each stream differs from the base and from the other."""
    torch.manual_seed(seed)
    for name, parameter in policy.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter, std=scale)
    return policy


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Each tiny model as a folder, and a random adapter for it."""
    root = tmp_path_factory.mktemp("models")
    for architecture in ARCHITECTURES:
        tiny_model(architecture).save_pretrained(root / architecture)
        peft_model = add_adapters(tiny_model(architecture), AdapterConfig(rank=4), {}, StreamRouter())
        torch.manual_seed(3)
        for name, parameter in peft_model.named_parameters():
            if ".lora_" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        save_adapter(peft_model, "policy", root / f"{architecture}-sft")
        (root / f"{architecture}-sft" / "SHA256SUMS").unlink()  # as peft writes folders; tests change what is in them
    return {path.name: path for path in root.iterdir()}


@pytest.fixture(params=ALL)
def policy(request, folders) -> MixedPolicy:
    """A mixed policy of each architecture, and of NF4 backbones; both streams away from the base."""
    return make_policy(request.param, folders)


def make_policy(name: str, folders: dict[str, Path], dtype: str = "float32", **arguments) -> MixedPolicy:
    architecture, _, quantization = name.partition("-")
    backbone = BackboneConfig(str(folders[architecture]), quantization or "none", dtype=dtype)  # pyright: ignore
    adapters = AdapterConfig(reference=str(folders[f"{architecture}-sft"]), rank=4)
    return randomise_adapters(MixedPolicy.from_pretrained(backbone, adapters, **arguments))


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random token ids, none of them the pad token."""
    return torch.randint(4, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def prompts(*rows: list[int]) -> list[Prompt]:
    """Token ids as prompts, numbered from 0."""
    return [Prompt(Problem(i, "", ""), ids) for i, ids in enumerate(rows)]


def portable_products(model: PreTrainedModel) -> PreTrainedModel:
    """The model in place, without bitsandbytes' own kernel for CPUs with bf16 units: it rounds products to bfloat16
    and refuses layers whose width is no multiple of 32."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> bool:
    """Whether no value is off by more than the tolerance times the largest value (or 1, if that is more)."""
    return float((found - expected).abs().max()) <= tolerance * max(1.0, float(expected.abs().max()))


@pytest.fixture(scope="module")
def merged(tmp_path_factory) -> str:
    """Folder of a whole model: the embedded one with its SFT adapter merged in."""
    return merged_sft(tmp_path_factory.mktemp("whole") / "sft")


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> str:
    """Folder of a whole model of another size."""
    return other_size(tmp_path_factory.mktemp("whole") / "small")
