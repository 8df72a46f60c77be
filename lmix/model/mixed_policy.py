"""The mixed policy: streams of one backbone, mixed into one distribution (eq. 1-3)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from lmix.model.adapters import AdapterConfig, adapter_scaling, add_adapters, check_adapter, save_adapter
from lmix.model.backbone import BackboneConfig, fingerprint, load_backbone
from lmix.model.frozen import dense_copy_fits, dequantized, freeze_backbone
from lmix.model.head import MixingHead
from lmix.model.mixture import POLICY, Mixture, RowMixtures
from lmix.model.prefix import Prefix, shared_prefix_hidden
from lmix.model.sharding import gathered, shard_layers
from lmix.model.streams import StreamRouter


class MixedPolicy(nn.Module):
    """A frozen backbone with a trainable `policy` adapter and frozen ones: `reference`, and experts.

    It computes any mixture of its streams and has none of its own: the mixture travels with each call.

    Shapes: B rows, T tokens, N chosen tokens, H hidden size, V vocabulary, K streams of a mixture.

    Args:
        model: a causal LM of transformers; it is frozen and gets the adapters in place.
        adapters: where the policy starts and what the frozen streams are.
        activation_checkpointing: recompute decoder layers in the backward pass; rollouts are untouched.
        dense_rollouts: see `BackboneConfig`.

    Raises:
        ValueError: an adapter that can't be read, or a model whose logits are no plain function of its head.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        adapters: AdapterConfig,
        activation_checkpointing: bool = False,
        dense_rollouts: bool | None = None,
    ) -> None:
        super().__init__()
        self.dense_rollouts = dense_rollouts
        self.router = StreamRouter()
        freeze_backbone(model)
        self.fingerprint = fingerprint(model)
        self.peft_model = add_adapters(model, adapters, adapters.frozen(), self.router)
        self.stream_names = (POLICY, *adapters.frozen())
        softcap = getattr(self.backbone.config, "final_logit_softcapping", None)
        output: Any = self.backbone.get_output_embeddings()
        self.head = MixingHead(output, self.router, softcap, self.backbone.config.vocab_size)
        self._checkpointed: list[nn.Module] = []
        self._sharded: list[FSDPModule] = []
        self.gathers_rollouts = True
        """Whether ranks that share a backbone gather it while they draw; otherwise each pass there needs all ranks."""
        if activation_checkpointing:
            self.backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            self._checkpointed = [m for m in self.modules() if isinstance(m, GradientCheckpointingLayer)]
        self._check_head()

    @classmethod
    def from_pretrained(
        cls, backbone: BackboneConfig, adapters: AdapterConfig, device: torch.device | str = "cpu"
    ) -> "MixedPolicy":
        """Check the adapters against the backbone's configuration, then load. Errors as in the class."""
        for path in {adapters.policy, *adapters.frozen().values()} - {None}:
            check_adapter(path, backbone.path)  # pyright: ignore[reportArgumentType]
        model = load_backbone(backbone, device)
        return cls(model, adapters, backbone.activation_checkpointing, backbone.dense_rollouts)

    def train(self, mode: bool = True) -> "MixedPolicy":
        """Do nothing: the forward pass is the same in training and evaluation, and has no dropout."""
        return self

    # the passes

    @property
    def backbone(self) -> PreTrainedModel:
        return self.peft_model.base_model.model  # pyright: ignore[reportReturnType, reportAttributeAccessIssue]

    @property
    def device(self) -> torch.device:
        return self.backbone.get_input_embeddings().weight.device  # pyright: ignore[reportReturnType]

    @contextmanager
    def rollouts(self) -> Iterator[None]:
        """A rollout phase: what is the same at every token is computed once. Nothing may be trained inside."""
        with (
            torch.no_grad(),
            gathered(self._sharded if self.gathers_rollouts else []),
            self.router.keep_factors(),
            dequantized(self, not self.draws_in_step and self.settle_dense_rollouts()),
        ):
            yield

    def settle_dense_rollouts(self, device: torch.device | None = None) -> bool:
        """Decide `dense_rollouts: null` by the memory that a device (by default the model's) has free now, for all
        rollouts to come; tokens would otherwise depend on what else runs."""
        if self.dense_rollouts is None:
            self.dense_rollouts = dense_copy_fits(self, device or self.device)
        return self.dense_rollouts

    @property
    def draws_in_step(self) -> bool:
        """Whether each pass of a rollout needs all ranks."""
        return bool(self._sharded) and not self.gathers_rollouts

    def shard(self, mesh: DeviceMesh) -> None:
        """Leave each rank a part of the backbone; see `lmix.model.sharding`. Passes then need all ranks."""
        self._sharded = shard_layers(self.backbone.get_decoder(), mesh)

    def hidden(self, input_ids: Tensor, streams: Sequence[str] = (POLICY,), **arguments: Any) -> Tensor:
        """Last hidden states (after the final norm) of each stream, in one stacked pass with one base matmul a layer.

        Args:
            input_ids: `[B, T]`, padded on the right: causal attention then never sees the padding.
            streams: which; more than one only without gradient.
            arguments: for the decoder (`position_ids`, `attention_mask`, `past_key_values`), for all K * B rows.

        Returns:
            `[K, B, T, H]`.
        """
        for layer in self._checkpointed:
            layer.training = torch.is_grad_enabled()  # in training mode these layers drop the KV cache
        stacked = {"input_ids": input_ids.repeat(len(streams), 1), "use_cache": False, **arguments}
        with self.router.stacked(streams):
            hidden = self.backbone.get_decoder()(**stacked).last_hidden_state
        return hidden.view(len(streams), *input_ids.shape, -1)

    def forward(self, input_ids: Tensor, mixture: Mixture) -> Tensor:
        """Mixed logits of right-padded rows, `[B, T]` -> float32 `[B, T, V]`. Only the policy gets a gradient."""
        if not torch.is_grad_enabled():
            return self.mixed_logits(list(self.hidden(input_ids, mixture.streams)), mixture)
        return self.mixed_logits([self.stream_hidden(input_ids, stream) for stream in mixture.streams], mixture)

    def mixed_logits(self, hidden_K: Sequence[Tensor], mixture: Mixture | RowMixtures) -> Tensor:
        """See `MixingHead.mixed_logits`."""
        return self.head.mixed_logits(hidden_K, mixture)

    def log_probs(
        self, hidden_K: Sequence[Tensor], tokens: Tensor, mixture: Mixture | RowMixtures, chunk: int | None = None
    ) -> Tensor:
        """See `MixingHead.log_probs`."""
        return self.head.log_probs(hidden_K, tokens, mixture, chunk)

    def entropies(self, hidden_K: Sequence[Tensor], mixture: Mixture | RowMixtures) -> Tensor:
        """See `MixingHead.entropies`."""
        return self.head.entropies(hidden_K, mixture)

    def stream_hidden(self, input_ids: Tensor, stream: str, prefix: Prefix | None = None) -> Tensor:
        """Hidden states of one stream, with a gradient for the policy only.

        Args:
            input_ids: `[B, T]`, whole rows; or completions alone where there is a prefix.
            prefix: prompts that the completions share.

        Returns:
            `[B, T, H]`, of the token at each place; with a prefix, of the token before it: what each one is drawn from.
        """

        def read(ids: Tensor, **arguments: Any) -> Tensor:
            return self.hidden(ids, (stream,), **arguments)[0]

        with torch.set_grad_enabled(torch.is_grad_enabled() and stream == POLICY):
            if prefix is None:
                return read(input_ids)
            return shared_prefix_hidden(read, self.backbone.config, prefix, input_ids, self.backbone.dtype)

    @property
    def shares_prefixes(self) -> bool:
        """Whether prompts can be read once for several completions. Checkpointed layers keep no keys and values; of a
        sharded backbone all ranks must make the same passes."""
        return not (self._checkpointed or self._sharded)

    # the adapters

    def adapter_state(self) -> dict[str, Tensor]:
        """The weights of all adapters, and nothing of the backbone, by parameter name."""
        return {name: p.detach() for name, p in self.named_parameters() if ".lora_" in name}

    def adapter_scaling(self) -> dict[str, list[float]]:
        """What each adapter's product is multiplied by, over its layers; the weights alone do not say it."""
        return adapter_scaling(self.peft_model)

    def policy_parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return [p for p in self.parameters() if p.requires_grad]

    def save_policy(self, folder: Path) -> None:
        """Write the policy adapter as a peft folder."""
        save_adapter(self.peft_model, POLICY, folder)

    @torch.no_grad()
    def _check_head(self) -> None:
        """Some architectures scale their logits after the head; mixing hidden states would then be silently wrong."""
        ids = torch.arange(2, device=self.device)[None]
        expected = self.backbone(input_ids=ids, use_cache=False).logits.float()
        computed = self.head.logits(self.hidden(ids)[0]).float()
        if not torch.allclose(computed, expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max())):
            kind = self.backbone.config.model_type
            raise ValueError(f"backbone of type {kind!r} changes its logits after the head in a way lmix does not know")
