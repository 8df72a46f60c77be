"""The mixed policy: streams of one backbone, mixed into one distribution (eq. 1-3)."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from lmix.functional import linear_log_probs, mix_streams, mix_streams_log_probs, token_log_probs, tokenwise
from lmix.model.adapters import (
    AdapterConfig,
    adapter_scaling,
    add_adapters,
    check_adapter,
    is_adapted,
    save_adapter,
)
from lmix.model.backbone import (
    BackboneConfig,
    dense_copy_fits,
    dequantized,
    fingerprint,
    freeze_backbone,
    load_backbone,
)
from lmix.model.prefix import Prefix, shared_prefix_hidden
from lmix.model.sharding import gathered, shard_layers
from lmix.model.streams import POLICY, REFERENCE, StreamRouter

Mixture = Literal["logits", "probs"]
CHUNK_LOGITS = 2**26
"""Logits that exist at once in the update."""


class MixedPolicy(nn.Module):
    """A frozen backbone with a trainable `policy` adapter and a frozen `reference`, sampled and scored as one policy.

    Shapes: B rows, T tokens, N chosen tokens, H hidden size, V vocabulary, K streams in the mixture.

    Args:
        model: a causal LM of transformers; it is frozen and gets the adapters in place.
        adapters: where the policy starts and what the reference is.
        alpha: weight of the reference, in [0, 1].
        mixture: `logits` averages logits (eq. 1), `probs` averages probabilities (section 5).
        weights: of the policy, the reference and each expert, in place of alpha (an ensemble); see `check_weights`.
        activation_checkpointing: recompute decoder layers in the backward pass; rollouts are untouched.
        dense_rollouts: see `BackboneConfig`.

    Raises:
        ValueError: alpha outside [0, 1], an adapter that can't be read, or a model whose logits are no plain function
            of its head.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        adapters: AdapterConfig,
        alpha: float = 0.5,
        mixture: Mixture = "logits",
        weights: Sequence[float] | None = None,
        activation_checkpointing: bool = False,
        dense_rollouts: bool | None = None,
    ) -> None:
        super().__init__()
        self.is_ensemble = check_weights(weights, adapters, mixture) is not None
        frozen = adapters.frozen()
        if weights is None:
            self._weights = two_weights(alpha)
        else:
            self._weights = dict(zip((POLICY, *frozen), map(float, weights), strict=True))
        self.mixture: Mixture = mixture
        self.dense_rollouts = dense_rollouts
        self.router = StreamRouter()
        freeze_backbone(model)
        self.fingerprint = fingerprint(model)
        self.peft_model = add_adapters(model, adapters, frozen, self.router)
        self.softcap: float | None = getattr(self.backbone.config, "final_logit_softcapping", None)
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
        cls,
        backbone: BackboneConfig,
        adapters: AdapterConfig,
        alpha: float = 0.5,
        mixture: Mixture = "logits",
        weights: Sequence[float] | None = None,
        device: torch.device | str = "cpu",
    ) -> "MixedPolicy":
        """Check the adapters against the backbone's configuration, then load. Errors as in the class."""
        check_alpha(alpha)
        check_weights(weights, adapters, mixture)
        for path in {adapters.policy, *adapters.frozen().values()} - {None}:
            check_adapter(path, backbone.path)  # pyright: ignore[reportArgumentType]
        model = load_backbone(backbone, device)
        return cls(model, adapters, alpha, mixture, weights, backbone.activation_checkpointing, backbone.dense_rollouts)

    def train(self, mode: bool = True) -> "MixedPolicy":
        """Do nothing: the forward pass is the same in training and evaluation, and has no dropout."""
        return self

    # what the mixture is

    @property
    def alpha(self) -> float:
        """Weight of the reference. A Python float: a buffer would be rounded by bf16 trainer precision.

        Raises:
            ValueError: when it is set outside [0, 1], or in an ensemble, whose weights are fixed.
        """
        return self._weights[REFERENCE]

    @alpha.setter
    def alpha(self, value: float) -> None:
        if self.is_ensemble:
            raise ValueError("alpha can't be moved where weights are given: an ensemble's weights are fixed")
        self._weights = two_weights(value)

    @property
    def weights(self) -> dict[str, float]:
        """Each stream's weight in the mixture; when set, streams that are not named get 0."""
        return dict(self._weights)

    @weights.setter
    def weights(self, value: dict[str, float]) -> None:
        self._weights = {name: float(value.get(name, 0.0)) for name in self._weights}

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams that count, in the order in which they are stacked: those of weight zero cost nothing."""
        return tuple(name for name, weight in self._weights.items() if weight != 0.0)

    @property
    def mixes_hidden(self) -> bool:
        """Whether hidden states can be mixed before the head: logits of a linear head that all streams share."""
        unbiased = getattr(self.head, "bias", None) is None or math.isclose(sum(self._weights.values()), 1.0)
        return self.mixture == "logits" and self.softcap is None and not is_adapted(self.head) and unbiased

    # the passes

    @property
    def backbone(self) -> PreTrainedModel:
        return self.peft_model.base_model.model  # pyright: ignore[reportReturnType, reportAttributeAccessIssue]

    @property
    def head(self) -> nn.Module:
        return self.backbone.get_output_embeddings()  # pyright: ignore[reportReturnType]

    @property
    def device(self) -> torch.device:
        return self.backbone.get_input_embeddings().weight.device  # pyright: ignore[reportReturnType]

    @contextmanager
    def rollouts(self) -> Iterator[None]:
        """Within, what is the same at every token is made once. Nothing may be trained there."""
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
        hidden = self._run(input_ids.repeat(len(streams), 1), streams, None, arguments)
        return hidden.view(len(streams), *input_ids.shape, -1)

    def hidden_of(self, input_ids: Tensor, rows: Mapping[str, slice], **arguments: Any) -> list[Tensor]:
        """As `hidden`, where streams need not run all rows.

        Args:
            input_ids: `[B, T]`.
            rows: which rows each stream runs, at least one each.
            arguments: for the decoder, for all rows that are run, stream after stream.

        Returns:
            `[rows, T, H]` of each stream.
        """
        blocks = [part.stop - part.start for part in rows.values()]
        stacked = torch.cat([input_ids[part] for part in rows.values()])
        return list(self._run(stacked, list(rows), blocks, arguments).split(blocks))

    def logits(self, hidden: Tensor, stream: str = POLICY) -> Tensor:
        """One stream's logits `[..., V]`, soft-capped where the model does so, from its hidden states `[..., H]`."""
        with self.router.stacked((stream,)):
            return self._cap(self.head(hidden))

    def mixed_logits(self, hidden_K: Sequence[Tensor], alphas: Tensor | None = None) -> Tensor:
        """Logits of the mixed policy, float32 `[..., V]`; their softmax is eq. 2-3 (or the mixture of probabilities).

        Args:
            hidden_K: `[..., H]` of each stream in the mixture, in the order of `streams`.
            alphas: `[...]`, a weight of the reference for each row in place of `alpha`; `hidden_K` is then that of
                policy and reference.
        """
        if alphas is not None:
            alphas = alphas[..., None]
            return self._mixed_logits(list(hidden_K), [POLICY, REFERENCE], [1.0 - alphas, alphas])
        return self._mixed_logits(list(hidden_K), list(self.streams), [self._weights[name] for name in self.streams])

    def log_probs(self, hidden_K: Sequence[Tensor], tokens: Tensor, chunk: int | None = None) -> Tensor:
        """Log-probabilities of chosen tokens under the mixed policy; only the policy's hidden states get a gradient.

        Args:
            hidden_K: `[N, H]` of each stream in `streams`.
            tokens: `[N]`.
            chunk: tokens whose logits exist at once; by default about 256 MB of them.

        Returns:
            `[N]`, float32.
        """
        return self._log_probs(hidden_K, list(self.streams), [self.weights[s] for s in self.streams], tokens, chunk)

    def stream_log_probs(self, hidden: Tensor, tokens: Tensor, stream: str, chunk: int | None = None) -> Tensor:
        """The same under one stream alone: `[N, H]`, `[N]` -> `[N]`."""
        return self._log_probs([hidden], [stream], [1.0], tokens, chunk)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Mixed logits of right-padded rows, `[B, T]` -> float32 `[B, T, V]`. Only the policy gets a gradient."""
        if not torch.is_grad_enabled():
            return self.mixed_logits(list(self.hidden(input_ids, self.streams)))
        return self.mixed_logits([self.stream_hidden(input_ids, stream) for stream in self.streams])

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

    # inside

    def _run(
        self, input_ids: Tensor, streams: Sequence[str], blocks: Sequence[int] | None, arguments: dict[str, Any]
    ) -> Tensor:
        """The decoder on stacked rows, `[rows, T]` -> `[rows, T, H]`."""
        for layer in self._checkpointed:
            layer.training = torch.is_grad_enabled()  # in training mode these layers drop the KV cache
        arguments = {"input_ids": input_ids, "use_cache": False, **arguments}
        with self.router.stacked(streams, blocks):
            return self.backbone.get_decoder()(**arguments).last_hidden_state

    def _mixed_logits(self, hidden_K: list[Tensor], names: list[str], weights: Sequence[float | Tensor]) -> Tensor:
        if self.mixes_hidden:
            return self.head(mix_streams(hidden_K, weights)).float()
        if len(names) == 1:
            return self.logits(hidden_K[0], names[0]).float()
        logits_K = [self.logits(h, name).float() for h, name in zip(hidden_K, names, strict=True)]
        if self.mixture == "logits":
            return mix_streams(logits_K, weights)
        return mix_streams_log_probs([z.log_softmax(-1) for z in logits_K], weights)

    def _log_probs(
        self, hidden_K: Sequence[Tensor], names: list[str], weights: list[float], tokens: Tensor, chunk: int | None
    ) -> Tensor:
        chunk = chunk or max(1, CHUNK_LOGITS // self.backbone.config.vocab_size)
        head: Any = self.head
        if self.mixes_hidden and type(head) is nn.Linear:
            return linear_log_probs(mix_streams(hidden_K, weights), head.weight, head.bias, tokens, chunk)
        # the policy's hidden states, which alone may carry a gradient, come first
        order = sorted(range(len(names)), key=lambda k: names[k] != POLICY)
        names, weights = [names[k] for k in order], [weights[k] for k in order]
        first, *others = [hidden_K[k] for k in order]

        def chosen(hidden: Tensor, tokens: Tensor, *others: Tensor) -> Tensor:
            return token_log_probs(self._mixed_logits([hidden, *others], names, weights), tokens)

        if not (is_adapted(self.head) and torch.is_grad_enabled()):
            return tokenwise(chosen, first, tokens, *others, chunk=chunk)
        # the head itself is trained: it needs a weight gradient, so autograd does the work, a chunk at a time
        parts = zip(*(x.split(chunk) for x in (first, tokens, *others)), strict=True)
        return torch.cat([checkpoint(chosen, *part, use_reentrant=False) for part in parts])  # pyright: ignore

    def _cap(self, logits: Tensor) -> Tensor:
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    @torch.no_grad()
    def _check_head(self) -> None:
        """Some architectures scale their logits after the head; mixing hidden states would then be silently wrong."""
        ids = torch.arange(2, device=self.device)[None]
        expected = self.backbone(input_ids=ids, use_cache=False).logits.float()
        found = self.logits(self.hidden(ids)[0]).float()
        if not torch.allclose(found, expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max())):
            kind = self.backbone.config.model_type
            raise ValueError(f"backbone of type {kind!r} changes its logits after the head in a way lmix does not know")


def two_weights(alpha: float) -> dict[str, float]:
    """The weights of policy and reference, eq. 1. Raises ValueError where alpha is outside [0, 1]."""
    alpha = check_alpha(alpha)
    return {POLICY: 1.0 - alpha, REFERENCE: alpha}


def check_weights(weights: Sequence[float] | None, adapters: AdapterConfig, mixture: Mixture) -> Sequence[float] | None:
    """See that an ensemble's weights are one a stream, the policy's not zero; logits take negative ones as well
    (DExperts, contrastive decoding), probabilities need them to be at least 0 and to sum to 1.

    Raises:
        ValueError: they are not.
    """
    streams = 1 + len(adapters.frozen())
    if weights is None:
        if streams > 2:
            raise ValueError("adapters.experts needs weights: of the policy, the reference and each expert")
        return None
    given = list(weights)
    if len(given) != streams:
        raise ValueError(
            f"weights must be {streams} numbers, not {given}: of the policy, the reference and each expert"
        )
    if not all(map(math.isfinite, given)) or given[0] == 0:
        raise ValueError(f"weights must be finite, and the first, the policy's, not 0: not {given}")
    if mixture == "probs" and (min(given) < 0 or abs(sum(given) - 1.0) > 1e-6):
        raise ValueError(f"weights of probabilities must be at least 0 and sum to 1, not {given}")
    return weights


def check_alpha(alpha: float) -> float:
    """Return alpha as a float. Raises ValueError unless it lies in [0, 1]."""
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must lie in [0, 1], not {alpha}: 0 is the policy alone, 1 the reference alone")
    return float(alpha)
