"""The mixed policy: streams of one or several backbones, mixed into one distribution (eq. 1-3)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from lmix.functional import Divergence
from lmix.model.adapters import AdapterConfig, adapter_scaling, save_adapter
from lmix.model.backbone import BackboneConfig, load_backbone
from lmix.model.frozen import copy_fits, dense_copy_fits, dequantized, four_bit_layers, free_memory, give_back_memory
from lmix.model.head import MixingHead
from lmix.model.mixture import POLICY, REFERENCE, Mixture, RowMixtures
from lmix.model.origin import Origin
from lmix.model.packed import can_pack, packed, packed_bytes
from lmix.model.placement import check_placed, place_streams
from lmix.model.prefix import Prefix
from lmix.model.sharding import gathered, shard_layers
from lmix.model.stacked_model import Part, StackedModel, parts_of


class MixedPolicy(nn.Module):
    """A frozen backbone with a trainable `policy` adapter, and frozen streams: the `reference` and any experts.

    A frozen stream is an adapter on the same backbone, the backbone itself, or another model of any size with the same
    tokens. The mixture of streams is not stored here: each call takes it as an argument.

    Shapes: B rows, T tokens, N chosen tokens, H hidden size (of each backbone its own), V vocabulary, K streams of a
    mixture.

    Args:
        model: the policy's backbone, a causal LM of transformers; it is frozen and gets the adapters in place.
        adapters: where the policy starts and what the frozen streams are.
        activation_checkpointing: recompute decoder layers in the backward pass; rollouts are not affected.
        dense_rollouts: see `BackboneConfig`.
        others: frozen models of further streams. If padded vocabularies differ, all are cut to the smallest.

    Raises:
        ValueError: an adapter that can't be read, or a model that changes its logits after the head in an unsupported
            way.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        adapters: AdapterConfig,
        activation_checkpointing: bool = False,
        dense_rollouts: bool | None = None,
        others: Sequence[StackedModel] = (),
    ) -> None:
        super().__init__()
        self.dense_rollouts = dense_rollouts
        starts = adapters.paths()
        self.stream_names = tuple(starts)
        elsewhere = {name for other in others for name in other.streams}
        own = {name: path for name, path in starts.items() if name not in elsewhere}
        self.models = (StackedModel(model, own, adapters, activation_checkpointing), *others)
        self.peft_model: Any = self.models[0].module
        self.frozen_models = nn.ModuleList([other.module for other in others])
        for each in self.models:
            each.head.vocabulary = min(m.head.vocabulary for m in self.models)
        self.head = MixingHead({name: each.head for each in self.models for name in each.streams})
        self._sharded: list[FSDPModule] = []
        self._packs: bool | None = None
        self.gathers_rollouts = True
        """Whether a sharded backbone is gathered for rollouts; otherwise each pass of a rollout needs all ranks."""

    @classmethod
    def from_pretrained(
        cls, backbone: BackboneConfig, adapters: AdapterConfig, device: torch.device | str = "cpu"
    ) -> "MixedPolicy":
        """Load backbone, adapters and other models, after a cheap check that they fit. Errors as in the class."""
        own, *others = place_streams(backbone, adapters)
        check_placed(backbone.path, [own, *others], device)
        model = load_backbone(own.backbone, device)
        frozen = [StackedModel(load_backbone(other.backbone, device), other.adapters) for other in others]
        paths = {name: path for placed in (own, *others) for name, path in placed.adapters.items()}
        experts = [paths[name] or "base" for name in adapters.frozen() if name != REFERENCE]
        folders = replace(adapters, policy=paths[POLICY], reference=paths[REFERENCE], experts=experts)
        return cls(model, folders, backbone.activation_checkpointing, backbone.dense_rollouts, frozen)

    def train(self, mode: bool = True) -> "MixedPolicy":
        """Do nothing: the forward pass is the same in training and evaluation, and has no dropout."""
        return self

    # the passes

    @property
    def backbone(self) -> PreTrainedModel:
        """The policy's backbone."""
        return self.models[0].model

    @property
    def device(self) -> torch.device:
        return self.models[0].device

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the policy's backbone; see `lmix.model.backbone.fingerprint`."""
        return self.models[0].fingerprint

    @property
    def other_fingerprints(self) -> dict[str, str]:
        """Fingerprints of the other models, by stream."""
        return {name: other.fingerprint for other in self.models[1:] for name in other.streams}

    @contextmanager
    def rollouts(self, keep: bool = False) -> Iterator[None]:
        """Context of a rollout phase, in which nothing is trained. Work that is the same at every token is done once.

        Args:
            keep: keep dequantised copies for the next phase, because CUDA graphs need them at the same address.
        """
        dense = not self.draws_in_step and self.settle_dense_rollouts()
        packs = not keep and self.settle_packing()  # torch.compile can't take packed weights
        with (
            torch.no_grad(),
            gathered(self._sharded if self.gathers_rollouts else []),
            ExitStack() as kept,
            dequantized(self, dense and not packs, keep),
        ):
            for model in self.models:
                kept.enter_context(model.router.keep_factors())
                kept.enter_context(packed(model.module, model.streams, packs))
            yield
        give_back_memory(self.device)

    def settle_dense_rollouts(self, device: torch.device | None = None) -> bool:
        """Resolve `dense_rollouts: null` by the memory that a device (by default the model's) has free now.

        All later rollouts use the same decision; otherwise tokens would depend on what else runs.
        """
        if self.dense_rollouts is None:
            self.dense_rollouts = dense_copy_fits(self, device or self.device)
        return self.dense_rollouts

    def settle_packing(self) -> bool:
        """Decide for all later rollouts whether weights are packed, by the memory that is free now."""
        if self._packs is None:
            able = not self._sharded and all(can_pack(model.dtype, model.device) for model in self.models)
            whole = self.dense_rollouts or not four_bit_layers(self)
            size = sum(packed_bytes(model.module, model.dtype.itemsize) for model in self.models)
            self._packs = bool(able and whole and copy_fits(size, free_memory(self.device)))
        return self._packs

    @property
    def draws_in_step(self) -> bool:
        """Whether each pass of a rollout needs all ranks."""
        return bool(self._sharded) and not self.gathers_rollouts

    def shard(self, mesh: DeviceMesh) -> None:
        """Shard the backbone over the ranks; see `lmix.model.sharding`. Each pass then needs all ranks."""
        self._sharded = shard_layers(self.backbone.get_decoder(), mesh)

    def parts(self, streams: Sequence[str]) -> list[Part]:
        """The models that these streams live on, each with its streams. Only these models are run."""
        return parts_of(self.models, streams)

    def hidden(
        self,
        input_ids: Tensor,
        streams: Sequence[str] = (POLICY,),
        arguments: Sequence[dict[str, Any]] | None = None,
    ) -> list[Tensor]:
        """Last hidden states of each stream, by one stacked pass per backbone; see `StackedModel.hidden`.

        Args:
            input_ids: `[B, T]`, padded on the right: causal attention then never sees the padding.
            streams: names of the streams; more than one only without gradient.
            arguments: decoder arguments for each of `parts(streams)`.

        Returns:
            `[B, T, H]` for each stream.
        """
        found: dict[str, Tensor] = {}
        parts = self.parts(streams)
        for part, given in zip(parts, arguments or [{}] * len(parts), strict=True):
            found |= zip(part.streams, part.model.hidden(input_ids, part.streams, **given), strict=True)
        return [found[stream] for stream in streams]

    def forward(self, input_ids: Tensor, mixture: Mixture) -> Tensor:
        """Mixed logits of right-padded rows, `[B, T]` -> float32 `[B, T, V]`. Only the policy gets a gradient."""
        if not torch.is_grad_enabled():
            return self.mixed_logits(self.hidden(input_ids, mixture.streams), mixture)
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

    def divergences(
        self, hidden: Tensor, student: Mixture, teacher: Callable[[Tensor], Tensor], divergence: Divergence
    ) -> Tensor:
        """See `MixingHead.divergences`."""
        return self.head.divergences(hidden, student, teacher, divergence)

    def stream_hidden(self, input_ids: Tensor, stream: str, prefix: Prefix | None = None) -> Tensor:
        """Hidden states of one stream, with a gradient for the policy only.

        Args:
            input_ids: `[B, T]`, prompts with completions; with a prefix, completions only.
            prefix: prompts that the completions share.

        Returns:
            `[B, T, H]`: the states at each token; with a prefix, those of the token before, which predict it.
        """
        (part,) = self.parts((stream,))
        with torch.set_grad_enabled(torch.is_grad_enabled() and stream == POLICY):
            return part.model.stream_hidden(input_ids, stream, prefix)

    @property
    def shares_prefixes(self) -> bool:
        """Whether a prompt can be read once for several completions. Checkpointed layers can't, as they keep no keys
        and values; nor can a sharded backbone, where all ranks must make the same passes."""
        return not (self.models[0].checkpointed or self._sharded)

    @property
    def update_passes(self) -> int:
        """Passes through the policy's layers in an update: forward and backward, and one more if it is recomputed."""
        return 2 + bool(self.models[0].checkpointed)

    # the adapters

    def adapter_state(self) -> dict[str, Tensor]:
        """The weights of all adapters, and nothing of the backbone, by parameter name."""
        return {name: p.detach() for name, p in self.named_parameters() if ".lora_" in name}

    def adapter_scaling(self) -> dict[str, list[float]]:
        """The distinct scalings of each adapter's layers, which are not part of its weights."""
        return adapter_scaling(self)

    def policy_parameters(self) -> list[nn.Parameter]:
        """The trainable parameters."""
        return [p for p in self.parameters() if p.requires_grad]

    def save_policy(self, folder: Path, origin: Origin | None = None) -> None:
        """Write the policy adapter as a peft folder."""
        save_adapter(self.peft_model, POLICY, folder, origin)
