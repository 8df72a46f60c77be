"""Sizes of a model and of a run, from which memory and time are estimated."""

from dataclasses import dataclass

import torch
from peft import get_peft_model
from transformers import PretrainedConfig

from lmix.model.adapters import AdapterConfig, read_adapter
from lmix.model.backbone import skeleton
from lmix.model.mixture import POLICY
from lmix.model.placement import field_of, is_model
from lmix.model.size import count_weights, head_size, key_width
from lmix.rollout.packing import WORTH_SHARING
from lmix.rollout.scheduler import slots_taken


@dataclass(frozen=True)
class ModelShape:
    """Numbers of weights, and widths, of a causal LM."""

    linear: int
    """Weights of the decoder's linear layers, which are quantised and sharded."""
    other: int
    """All other weights: embeddings, head, norms, biases."""
    head: int
    """Weights of the head, tied or not."""
    lora: int
    """Weights of the policy's adapter."""
    frozen_lora: int
    """Weights of all other adapters."""
    layers: int
    hidden: int
    inner: int
    """Intermediate width of an MLP."""
    queries: int
    """Width of all query heads of a layer."""
    keys: int
    """Width of all key heads of a layer; values have the same."""
    vocabulary: int


def model_shape(config: PretrainedConfig, adapters: AdapterConfig) -> ModelShape:
    """Count a model's weights from its configuration alone.

    Raises:
        ValueError: target_modules that the model does not have, or an adapter that can't be read.
    """
    model = skeleton(config)
    linear, other, head = count_weights(model)  # before adapters are added to it
    paths = {name: path for name, path in adapters.paths().items() if path}
    folders = {name: path for name, path in paths.items() if not is_model(field_of(name), path)}
    if POLICY in folders:
        lora = _weights_of(folders.pop(POLICY))
    else:
        with torch.device("meta"):
            adapted = get_peft_model(model, adapters.fresh())
        lora = sum(p.numel() for name, p in adapted.named_parameters() if ".lora_" in name)
    return ModelShape(
        linear,
        other,
        head,
        lora,
        sum(map(_weights_of, folders.values())),
        config.num_hidden_layers,
        config.hidden_size,
        config.intermediate_size,
        config.num_attention_heads * head_size(config),
        key_width(config),
        config.vocab_size,
    )


def _weights_of(adapter: str) -> int:
    return sum(weight.numel() for weight in read_adapter(adapter)[1].values())


@dataclass(frozen=True)
class FrozenModel:
    """A whole model that frozen streams live on."""

    shape: ModelShape
    nf4: bool
    streams: int
    """Number of its streams that the mixture runs."""
    kl: bool = False
    """Whether its stream is scored for a KL."""


@dataclass(frozen=True)
class VLLMShape:
    """vLLM on the trainer's device, or on servers."""

    bytes: float
    """Bytes that vLLM takes of a device's memory; 0 for servers."""
    sleeps: bool
    """Whether this memory is free during the update."""
    streams: int
    """Number of all streams: vLLM runs those of weight 0 too."""


@dataclass(frozen=True)
class RunShape:
    """What a run does with the model, on each of its devices."""

    nf4: bool
    double_quantization: bool
    width: int
    """Bytes of a number in the backbone's dtype: 2 or 4."""
    dense_rollouts: bool
    checkpointing: bool
    streams: int
    """Number of streams of the policy's model that the mixture runs."""
    prompts: int
    """Prompts of a step, over all devices."""
    samples: int
    slots: int
    prompt_tokens: int
    """Tokens of a prompt: the average for time, the longest for memory."""
    tokens: int
    """Maximum tokens of a completion; times are for completions of this length."""
    keep_frozen: bool
    pass_tokens: int
    """Padded tokens of one pass of the update."""
    draws: bool = True
    """Whether rows are completions that the step draws; if false, they are demonstrations (SFT)."""
    inner_updates: int = 1
    """Passes over the rows with a gradient."""
    mini_batches: int = 1
    """Optimiser steps of a pass over the rows."""
    evaluated: int = 0
    """Rows that one device decodes in an evaluation, or in the alpha step."""
    mixes_logits: bool = False
    """Whether each stream's logits are computed, because probabilities or soft-capped logits are mixed."""
    kl: bool = False
    """Whether the reference is scored for a KL."""
    live: float = 1.0
    """Fraction of the groups that are live; dead groups are skipped."""
    devices: int = 1
    sharded: bool = False
    packed: bool = False
    """Whether rollouts on a CPU use a packed copy of the weights (`lmix.model.packed`)."""
    compiled: bool = False
    """Whether keys and values, and a dequantised copy, stay between rollout phases (`sampling.compile`)."""
    others: tuple[FrozenModel, ...] = ()
    """Further models, which are whole on each device."""
    vllm: VLLMShape | None = None
    """vLLM, if it draws instead of lmix's engine."""

    @property
    def rows(self) -> int:
        """Completions of a step on one device."""
        return -(-self.prompts // self.devices) * self.samples

    @property
    def kept(self) -> int:
        """Frozen streams of the policy's model whose hidden states are kept from the rollouts."""
        return max(0, self.streams - 1) if self.keep_frozen else 0

    @property
    def copies(self) -> bool:
        """Whether rollouts have a dequantised copy of a 4-bit backbone. Packed weights are such a copy already."""
        return self.nf4 and self.dense_rollouts and not self.packed

    @property
    def most_tokens(self) -> int:
        """Tokens of all rows of a device at full length, with a shared prompt once: no pass is larger."""
        prompts = self.rows // self.samples if self.shares_prompts else self.rows
        return prompts * self.prompt_tokens + self.rows * self.tokens

    @property
    def shares_prompts(self) -> bool:
        """Whether the update reads a prompt once for all of its completions."""
        whole = self.samples * (self.prompt_tokens + self.tokens)
        cheaper = self.prompt_tokens + self.samples * self.tokens < WORTH_SHARING * whole
        fits = self.pass_tokens >= self.prompt_tokens + 2 * self.tokens
        return cheaper and fits and not (self.checkpointing or self.sharded)

    @property
    def active(self) -> int:
        """Completions that a device draws at once."""
        return slots_taken(self.slots, self.samples, self.rows) if self.draws else 0

    @property
    def decoded(self) -> int:
        """Maximum rows that are decoded at once: an evaluation may have more than a step."""
        return max(self.active, min(self.slots, self.evaluated))
