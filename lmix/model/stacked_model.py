"""One backbone with the streams that live on it: rows of several streams go through it in one pass.

Shapes: B rows, T tokens, H hidden size, K streams of the pass.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from lmix.model.adapters import AdapterConfig, add_adapters
from lmix.model.attention import avoid_cudnn_attention
from lmix.model.backbone import fingerprint
from lmix.model.frozen import freeze_backbone
from lmix.model.head import Head
from lmix.model.mixture import POLICY
from lmix.model.prefix import Prefix, shared_prefix_hidden
from lmix.model.streams import StreamRouter


class StackedModel:
    """A frozen causal LM with the adapters of its streams.

    Args:
        model: a transformers model; it is frozen and gets the adapters in place.
        adapters: stream name -> peft folder, or None if the stream is the model itself.
        policy: settings of the trainable adapter of the stream `policy`; None if that lives on another model.
        activation_checkpointing: recompute decoder layers in the backward pass; rollouts are not affected.

    Raises:
        ValueError: an adapter that can't be read, or a model that changes its logits after the head in an unsupported
            way.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        adapters: Mapping[str, str | None],
        policy: AdapterConfig | None = None,
        activation_checkpointing: bool = False,
    ) -> None:
        self.model, self.streams, self.router = model, tuple(adapters), StreamRouter()
        freeze_backbone(model)
        avoid_cudnn_attention()
        self.fingerprint = fingerprint(model)
        self.module: nn.Module = add_adapters(model, policy, adapters, self.router)
        output: Any = model.get_output_embeddings()
        softcap = getattr(model.config, "final_logit_softcapping", None)
        self.head = Head(output, self.router, softcap, model.config.vocab_size)
        self.checkpointed: list[nn.Module] = []
        if activation_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            self.checkpointed = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
        self._check_head()

    @property
    def config(self) -> PretrainedConfig:
        return self.model.config

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device  # pyright: ignore[reportReturnType]

    def hidden(self, input_ids: Tensor, streams: Sequence[str], **arguments: Any) -> Tensor:
        """Last hidden states (after the final norm) of each stream, in one stacked pass with one base matmul a layer.

        Args:
            input_ids: `[B, T]`, padded on the right: causal attention then never sees the padding.
            streams: names of the streams; more than one only without gradient.
            arguments: of the decoder (`position_ids`, `attention_mask`, `past_key_values`), for all K * B rows.

        Returns:
            `[K, B, T, H]`.
        """
        for layer in self.checkpointed:
            layer.training = torch.is_grad_enabled()  # in training mode these layers drop the KV cache
        stacked = {"input_ids": input_ids.repeat(len(streams), 1), "use_cache": False, **arguments}
        with self.router.stacked(streams):
            hidden = self.model.get_decoder()(**stacked).last_hidden_state
        return hidden.view(len(streams), *input_ids.shape, -1)

    def stream_hidden(self, input_ids: Tensor, stream: str, prefix: Prefix | None = None) -> Tensor:
        """See `MixedPolicy.stream_hidden`."""

        def read(ids: Tensor, **arguments: Any) -> Tensor:
            return self.hidden(ids, (stream,), **arguments)[0]

        if prefix is None:
            return read(input_ids)
        return shared_prefix_hidden(read, self.config, prefix, input_ids, self.dtype)

    @torch.no_grad()
    def _check_head(self) -> None:
        """Raise ValueError if the model changes its logits after the head: mixed hidden states would be wrong."""
        ids = torch.arange(2, device=self.device)[None]
        expected = self.model(input_ids=ids, use_cache=False).logits.float()
        computed = self.head.logits(self.hidden(ids, (POLICY,))[0]).float()
        if not torch.allclose(computed, expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max())):
            kind = self.config.model_type
            raise ValueError(
                f"backbone of type {kind!r} changes its logits after the head in a way that lmix does not support"
            )


@dataclass(frozen=True)
class Part:
    """A model, and those of its streams that a mixture runs."""

    model: StackedModel
    streams: tuple[str, ...]


def parts_of(models: Sequence[StackedModel], streams: Sequence[str]) -> list[Part]:
    """The models that have any of these streams, each with its share of them: one stacked pass each."""
    parts = [Part(model, tuple(name for name in streams if name in model.streams)) for model in models]
    return [part for part in parts if part.streams]
