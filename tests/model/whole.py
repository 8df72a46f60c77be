"""Whole models as folders: the embedded one with its SFT adapter merged in, and one of another size."""

import shutil
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from lmix.model.sources import load_config, resolve
from tests.model.tokenizers import copy_of_embedded

BASE, SFT = "lmix:tiny-arithmetic", "lmix:tiny-arithmetic-sft"
WEIGHTS = "model.safetensors"


def merged_sft(folder: Path) -> str:
    """The SFT adapter merged into its base, as people publish their models."""
    copy_of_embedded(folder)
    base: Any = AutoModelForCausalLM.from_pretrained(resolve(BASE), dtype=torch.float32)
    model: Any = PeftModel.from_pretrained(base, resolve(SFT))
    model.merge_and_unload().save_pretrained(folder)
    return str(folder)


def other_size(folder: Path, extra_rows: int = 8, seed: int = 3) -> str:
    """A small random Llama with the embedded model's tokens, and rows of padding."""
    copy_of_embedded(folder)
    (folder / WEIGHTS).unlink()
    shape = load_config(BASE)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=shape.vocab_size + extra_rows,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=shape.max_position_embeddings,
        initializer_range=0.1,
        tie_word_embeddings=False,
        eos_token_id=shape.eos_token_id,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def without_weights(source: str, folder: Path) -> Path:
    """A copy of a model's folder that can be looked at and not loaded."""
    shutil.copytree(resolve(source), folder)
    (folder / WEIGHTS).unlink()
    return folder
