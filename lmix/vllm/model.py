# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""The mixed policy as a vLLM model: one of vLLM's decoders on the rows of all streams, mixed before or after its head.

Legend: K streams, N tokens of a pass, R rows that a token is drawn for, H hidden size, V vocabulary.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.model_executor.models.utils import init_vllm_registered_model
from vllm.model_executor.utils import get_packed_modules_mapping

from lmix.model.adapters import read_adapter
from lmix.model.head import Head, MixingHead
from lmix.model.mixed_config import MixedPolicyConfig
from lmix.model.mixture import Mixture, stream_names
from lmix.model.sources import load_config
from lmix.model.streams import StreamRouter
from lmix.vllm.attention import stack_attention
from lmix.vllm.lora import LoRATable, adapted, largest_rank
from lmix.vllm.requests import OF_INSTANCE
from lmix.vllm.settings import exported_mixture


class InnerHead:
    """vLLM's LM head, which itself gathers the vocabulary over ranks and caps logits."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.bias = inner, getattr(getattr(inner, "lm_head", None), "bias", None)

    def __call__(self, hidden: Tensor) -> Tensor:
        return self.inner.compute_logits(hidden)


class ServedHead(Head):
    """The LM head of all streams. `softcap` only decides where streams are mixed: vLLM's head has capped the logits."""

    def logits(self, hidden: Tensor, stream: str = "") -> Tensor:
        return self.module(hidden)[..., : self.vocabulary]


# compile this wrapper and not the decoder inside: vLLM's shapes are for N tokens, and the decoder gets K * N
@support_torch_compile(dynamic_arg_dims={"input_ids": 0, "positions": -1, "inputs_embeds": 0})
class ServedMixedPolicy(nn.Module):
    """What `vllm serve` runs for a folder of `lmix export`.

    Attributes:
        mixture: used for requests without weights of their own. It may be replaced at any time (`lmix.vllm.worker`),
            because keys and values do not depend on it.
    """

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config: MixedPolicyConfig = vllm_config.model_config.hf_config  # pyright: ignore[reportAssignmentType]
        folder = Path(vllm_config.model_config.model)
        self.streams = stream_names(len(config.adapters))
        self.mixture = exported_mixture(config)
        self.requests = OF_INSTANCE.get(vllm_config.instance_id)
        backbone = load_config(config.backbone["path"])
        layers = vllm_config.compilation_config.static_forward_context
        before = set(layers)
        self.inner: Any = init_vllm_registered_model(
            vllm_config, prefix=prefix, hf_config=backbone, architectures=backbone.architectures
        )
        stack_attention(layers, [name for name in layers if name not in before], self.streams)
        self.adapters = {
            stream: read_adapter(str(folder / name)) for stream, name in config.adapters.items() if name is not None
        }
        weights = [weights for _, weights in self.adapters.values()]
        self.lora = LoRATable(
            self.inner,
            get_packed_modules_mapping(self.inner),
            set().union(*map(adapted, weights)),
            max(map(largest_rank, weights), default=0),
            len(self.streams),
        )
        softcap = getattr(backbone, "final_logit_softcapping", None)
        head = ServedHead(InnerHead(self.inner), StreamRouter(), softcap, backbone.vocab_size)
        self.head = MixingHead(dict.fromkeys(self.streams, head))

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        return self.inner.embed_input_ids(input_ids)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Hidden states of all streams, `[N, K * H]`, of N tokens in vLLM's layout."""
        streams = len(self.streams)
        ids = None if input_ids is None else torch.cat([input_ids] * streams)
        embeds = None if inputs_embeds is None else torch.cat([inputs_embeds] * streams)
        hidden = self.inner(ids, torch.cat([positions] * streams, dim=-1), None, embeds)
        return hidden.unflatten(0, (streams, -1)).transpose(0, 1).flatten(1)

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        """Logits of the mixture, float32 `[R, V]`, from `[R, K * H]`, with the weights of each row's request."""
        mixture: Any = self.mixture
        if self.requests is not None:
            mixture = self.requests.rows(len(hidden_states), mixture)
        hidden_K = dict(zip(self.streams, hidden_states.unflatten(-1, (len(self.streams), -1)).unbind(-2), strict=True))
        return self.head.mixed_logits([hidden_K[name] for name in mixture.streams], mixture)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load the backbone's weights, and the adapters, which were read in the constructor."""
        loaded = {f"inner.{name}" for name in self.inner.load_weights(weights)}
        for stream, (config, factors) in self.adapters.items():
            self.lora.write(self.streams.index(stream), config, factors)
        self.adapters.clear()
        return loaded

    def set_adapter(self, stream: str, folder: str) -> None:
        """Reload a stream's adapter from a peft folder. Cached keys and values are then outdated.

        Raises:
            ValueError: no such stream, or an adapter that does not fit.
        """
        if stream not in self.streams:
            raise ValueError(f"there is no stream {stream!r}: this model has {', '.join(self.streams)}")
        self.lora.write(self.streams.index(stream), *read_adapter(folder))

    def set_mixture(self, mixture: Mixture) -> None:
        """Use this mixture from the next token on. Raises ValueError unless it has a weight for each stream."""
        if len(mixture.weights) != len(self.streams):
            weights = list(mixture.weights)
            raise ValueError(f"weights must be {len(self.streams)} numbers, one per stream, not {weights}")
        self.mixture = mixture
