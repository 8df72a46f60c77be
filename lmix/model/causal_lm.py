"""The mixed policy as a transformers model: `generate()`, `from_pretrained`, `save_pretrained`.

Legend: B rows, T tokens, K streams, V vocabulary.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    GenerationConfig,
    GenerationMixin,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import GENERATION_CONFIG_NAME

from lmix.files import write_lines
from lmix.model.adapters import AdapterConfig, save_adapter
from lmix.model.backbone import BackboneConfig, best_device
from lmix.model.end_tokens import end_tokens
from lmix.model.mixed_config import FILE, OWN, MixedPolicyConfig
from lmix.model.mixed_policy import MixedPolicy
from lmix.model.mixture import POLICY, REFERENCE, Mixture, stream_names
from lmix.model.placement import field_of
from lmix.model.stacked_model import Part


class StackedCache(DynamicCache):
    """Keys and values of K streams, stacked as K blocks of B rows; for `generate` it is a cache of B rows.

    Args:
        part: streams of one backbone.
        others: caches of the mixture's other backbones; their rows are reordered together with this one's.
    """

    def __init__(self, part: Part, others: "Sequence[StackedCache]" = ()) -> None:
        super().__init__(config=part.model.config)
        self.streams, self.others = len(part.streams), others

    def _all(self, indices: Tensor) -> Tensor:
        layer: Any = self.layers[0]
        rows = layer.keys.shape[0] // self.streams
        return torch.cat([indices + k * rows for k in range(self.streams)])

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(self._all(beam_idx))  # pyright: ignore[reportArgumentType]
        for other in self.others:
            other.reorder_cache(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(self._all(indices))
        for other in self.others:
            other.batch_select_indices(indices)


class MixedPolicyForCausalLM(PreTrainedModel, GenerationMixin):
    """A mixed policy with the interface of a transformers causal LM, for inference only (no gradient).

    `generate` supports greedy decoding, sampling, beam search, streamers and left-padded batches. It samples unless
    `do_sample=False`.

    Args:
        config: configuration of the mixed policy.
        policy: the streams.
        mixture: the mixture that the model computes; `model.mixture` may be replaced at any time.
    """

    config_class = MixedPolicyConfig
    base_model_prefix = "policy"
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, config: MixedPolicyConfig, policy: MixedPolicy, mixture: Mixture) -> None:
        super().__init__(config)
        self.policy, self.mixture = policy, mixture
        given = getattr(policy.backbone, "generation_config", None) or GenerationConfig()
        # sample as in training: the backbone's own temperature, top-p and repetition penalty are dropped
        self.generation_config = GenerationConfig(
            **{name: getattr(given, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
        )
        self.eval()

    @classmethod
    def from_policy(cls, policy: MixedPolicy, mixture: Mixture, backbone: BackboneConfig) -> "MixedPolicyForCausalLM":
        """Wrap a mixed policy in the transformers interface.

        Args:
            policy: shared and not copied, so the model uses its current weights.
            mixture: the mixture that the model computes.
            backbone: the settings that its backbone was loaded with; `from_pretrained` loads it with them again.
        """
        fields = {k: v for k, v in policy.backbone.config.to_dict().items() if k not in OWN}
        config = MixedPolicyConfig(
            backbone={name: getattr(backbone, name) for name in backbone.__dataclass_fields__},
            adapters={name: name if name in policy.peft_model.peft_config else None for name in policy.stream_names},
            mixture=mixture.kind,
            weights=mixture.by_name(),
            plausibility=mixture.plausibility,
            **{**fields, "architectures": [cls.__name__]},
        )
        config._name_or_path = backbone.path
        return cls(config, policy, mixture)

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, folder: str | Path, *args: Any, device: torch.device | str | None = None, **kwargs: Any
    ) -> "MixedPolicyForCausalLM":
        """Load a folder that `save_pretrained` wrote.

        Args:
            folder: its path.
            args: ignored; `AutoModelForCausalLM` may pass some.
            device: by default a GPU if there is one.
            kwargs: ignored, except `backbone`: the backbone's new path, if it has moved.

        Raises:
            ValueError: no such folder, or a backbone or adapter that can't be loaded.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            raise ValueError(f"{str(folder)!r} has no {FILE}: give a folder that lmix export wrote")
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            kind = fields["model_type"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{str(path)!r} is not a model configuration") from error
        if kind != MixedPolicyConfig.model_type:
            raise ValueError(f"{str(folder)!r} contains a {kind!r}, not a mixed policy of lmix")
        config = MixedPolicyConfig(**{k: v for k, v in fields.items() if k != "model_type"})
        config.backbone = {**config.backbone, **({"path": kwargs["backbone"]} if "backbone" in kwargs else {})}
        backbone = BackboneConfig(**config.backbone)
        streams = stream_names(len(config.adapters))  # not in the order of the JSON file
        experts = streams[2:]
        folders = {
            name: None if config.adapters[name] is None else str(Path(folder) / str(config.adapters[name]))
            for name in streams
        }
        policy = MixedPolicy.from_pretrained(
            backbone,
            AdapterConfig(folders[REFERENCE], folders[POLICY], [folders[name] or "base" for name in experts]),
            device or best_device(),
        )
        weights = tuple(config.weights[name] for name in streams)
        mixture = Mixture(weights, config.mixture, plausibility=config.plausibility)  # pyright: ignore[reportArgumentType]
        config._name_or_path = str(folder)
        model = cls(config, policy, mixture)
        model.generation_config.eos_token_id = config.eos_token_id  # as set by `ending_with`
        return model

    def ending_with(self, tokenizer: PreTrainedTokenizerBase) -> "MixedPolicyForCausalLM":
        """End completions at the same tokens as in training. Returns the model."""
        self.config.eos_token_id = self.generation_config.eos_token_id = end_tokens(self.policy.backbone, tokenizer)
        if self.generation_config.pad_token_id is None:
            self.generation_config.pad_token_id = tokenizer.eos_token_id
        return self

    def save_pretrained(self, save_directory: str | Path, **_: Any) -> None:  # pyright: ignore
        """Write the adapters as peft folders, and a configuration that names the backbone. No base weights are copied.

        Raises:
            ValueError: a stream is a whole model of its own.
        """
        if others := self.policy.models[1:]:
            raise ValueError(
                f"export writes the adapters of one backbone, but {field_of(others[0].streams[0])} is a whole model: "
                "turn it into an adapter with lmix delta, or leave it out"
            )
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        for stream, name in self.config.adapters.items():
            if name is not None:
                save_adapter(self.policy.peft_model, stream, folder / name)
        self.config.mixture, self.config.weights = self.mixture.kind, self.mixture.by_name()
        self.config.plausibility = self.mixture.plausibility
        write_lines(folder / FILE, [self.config.to_json_string(use_diff=False)])
        # vLLM's server reads its default sampling parameters from this file
        write_lines(folder / GENERATION_CONFIG_NAME, [self.generation_config.to_json_string(use_diff=True)])

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: StackedCache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        labels: Tensor | None = None,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of the mixed policy, float32 `[B, T, V]`; their softmax is eq. 2-3.

        Args:
            input_ids: `[B, T]`, padded on either side if there is an attention mask.
            attention_mask: `[B, L]`, 1 for tokens and 0 for padding, over the cached tokens and `input_ids`.
            position_ids: `[B, T]` or `[1, T]`.
            past_key_values: a cache made by `new_cache`.
            use_cache: return a cache; if `past_key_values` is None, a new one is made.
            logits_to_keep: compute logits of this many last tokens only; 0 keeps all.
            labels: `[B, T]`, -100 for tokens to ignore; with labels, `loss` is the mean negative log-likelihood.

        Raises:
            ValueError: the cache is of another kind.
        """
        streams = self.mixture.streams
        parts = self.policy.parts(streams)
        arguments: list[dict[str, Any]] = [{} for _ in parts]
        for part, given in zip(parts, arguments, strict=True):
            if attention_mask is not None:
                given["attention_mask"] = attention_mask.repeat(len(part.streams), 1)
            if position_ids is not None:
                given["position_ids"] = position_ids.expand(len(input_ids), -1).repeat(len(part.streams), 1)
        cache = None
        if use_cache or past_key_values is not None:
            cache = self.new_cache() if past_key_values is None else past_key_values
            if not isinstance(cache, StackedCache):
                raise ValueError(f"past_key_values must come from `new_cache()`, not be a {type(cache).__name__}")
            for given, own in zip(arguments, (cache, *cache.others), strict=True):
                given |= {"past_key_values": own, "use_cache": True}
        with torch.no_grad():
            hidden_K = self.policy.hidden(input_ids, streams, arguments)
            logits = self.policy.mixed_logits([hidden[:, -logits_to_keep:] for hidden in hidden_K], self.mixture)
        loss = None
        if labels is not None:
            targets = nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]
            loss = nn.functional.cross_entropy(logits.transpose(1, 2), targets)
        return CausalLMOutputWithPast(loss, logits, cache)  # pyright: ignore

    def _prepare_cache_for_generation(self, generation_config: Any, model_kwargs: Any, *_: Any, **__: Any) -> None:
        """Make `generate` use a stacked cache."""
        if generation_config.use_cache is not False and model_kwargs.get("past_key_values") is None:
            model_kwargs["past_key_values"] = self.new_cache()

    def new_cache(self) -> StackedCache:
        """An empty cache, for `past_key_values`."""
        first, *others = self.policy.parts(self.mixture.streams)
        return StackedCache(first, [StackedCache(part) for part in others])

    def get_input_embeddings(self) -> nn.Module:
        return self.policy.backbone.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.policy.models[0].head.module

    def tie_weights(self, *_: Any, **__: Any) -> None:
        """Do nothing: the backbone ties its own weights."""


# in place of the loader of auto.py
AutoModelForCausalLM.register(MixedPolicyConfig, MixedPolicyForCausalLM, exist_ok=True)
