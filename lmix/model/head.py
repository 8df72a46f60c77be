"""LM heads: from the streams' hidden states to the mixed distribution. Streams are mixed before or after the head.

Shapes: B rows, N chosen tokens, H hidden size (each backbone has its own), V vocabulary, K streams of the mixture.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lmix.functional import (
    Divergence,
    divergences,
    entropies,
    implausible,
    linear_divergences,
    linear_entropies,
    linear_log_probs,
    mix_streams,
    mix_streams_log_probs,
    token_log_probs,
    tokenwise,
)
from lmix.model.adapters import is_adapted
from lmix.model.mixture import POLICY, Mixture, RowMixtures
from lmix.model.streams import StreamRouter

CHUNK_LOGITS = 2**26
"""Number of logits that are in memory at once during the update."""


class Head:
    """One backbone's LM head.

    The head is linear, frozen and shared by the backbone's streams. So mixing hidden states before the head gives the
    mixed logits with one matmul and one row of width V. Where this does not hold (capped logits, a LoRA on the head, a
    bias with weights that do not sum to 1), each stream's logits are computed and then mixed.

    Args:
        module: the head; it may have a LoRA.
        router: selects the head's adapter.
        softcap: Gemma 2's cap on logits, `cap * tanh(z / cap)`; None for none.
        vocabulary: V; further logits (padding that another backbone lacks) are cut off.
    """

    def __init__(self, module: Any, router: StreamRouter, softcap: float | None, vocabulary: int) -> None:
        self.module, self.router, self.softcap, self.vocabulary = module, router, softcap, vocabulary

    def mixes_hidden(self, weights_sum_to_one: bool) -> bool:
        """Whether mixing hidden states before the head equals mixing logits after it."""
        unbiased = getattr(self.module, "bias", None) is None or weights_sum_to_one
        return self.softcap is None and not is_adapted(self.module) and unbiased

    def logits(self, hidden: Tensor, stream: str = POLICY) -> Tensor:
        """One stream's logits `[..., V]` from its hidden states `[..., H]`."""
        with self.router.stacked((stream,)):
            logits = self.module(hidden)[..., : self.vocabulary]
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    def weighted_logits(
        self,
        hidden_K: Sequence[Tensor],
        streams: Sequence[str],
        weights: Sequence[float | Tensor],
        weights_sum_to_one: bool,
    ) -> Tensor:
        """`sum_k w_k z_k` over streams of this backbone, float32 `[..., V]`."""
        if self.mixes_hidden(weights_sum_to_one):
            return self.module(mix_streams(hidden_K, weights))[..., : self.vocabulary].float()
        pairs = zip(hidden_K, streams, strict=True)
        return mix_streams([self.logits(hidden, stream).float() for hidden, stream in pairs], weights)


class MixingHead:
    """Applies a mixture to the heads of one or several backbones.

    Streams of one backbone are mixed before its head if possible, and logits are summed over backbones:
    `z = sum_b head_b(sum_{k in b} w_k h_k)`. A mixture of probabilities needs each stream's own logits.

    Args:
        heads: each stream's head; streams of one backbone share one.
    """

    def __init__(self, heads: Mapping[str, Head]) -> None:
        self.heads = dict(heads)

    @property
    def vocabulary(self) -> int:
        """V, the same for all heads."""
        return self.heads[POLICY].vocabulary

    def logits(self, hidden: Tensor, stream: str = POLICY) -> Tensor:
        """One stream's logits `[..., V]` from its hidden states `[..., H]`."""
        return self.heads[stream].logits(hidden, stream)

    def mixed_logits(self, hidden_K: Sequence[Tensor], mixture: Mixture | RowMixtures) -> Tensor:
        """Logits of the mixed policy, float32 `[..., V]`; their softmax is eq. 2-3 (or the mixture of probabilities).

        Args:
            hidden_K: `[..., H]` of each of `mixture.streams`; `[B, H]` for `RowMixtures`.
            mixture: the weights.
        """
        mixed = self._mixed(hidden_K, mixture)
        if not mixture.plausibility:
            return mixed
        # the policy is the first stream: plausibility requires that its weight is not 0
        expert = self.logits(hidden_K[0], POLICY).float()
        return mixed.masked_fill(implausible(expert, mixture.plausibility), -torch.inf)

    def _mixed(self, hidden_K: Sequence[Tensor], mixture: Mixture | RowMixtures) -> Tensor:
        """`mixed_logits` before implausible tokens are excluded."""
        if mixture.kind == "logits":
            first, *others = self._by_head(mixture)
            mixed = self._part(first, hidden_K, mixture)
            for places in others:
                mixed = mixed + self._part(places, hidden_K, mixture)
            return mixed
        pairs = zip(hidden_K, mixture.streams, strict=True)
        logits_K = [self.logits(hidden, stream).float() for hidden, stream in pairs]
        if isinstance(mixture, Mixture) and mixture.stream_weights == (1.0,):
            mixed = logits_K[0]  # exactly that stream
        else:
            log_probs_K = [logits.log_softmax(-1) for logits in logits_K]
            mixed = mix_streams_log_probs(log_probs_K, mixture.stream_weights)
        return mixed if mixture.temperature == 1.0 else mixed / mixture.temperature

    def log_probs(
        self, hidden_K: Sequence[Tensor], tokens: Tensor, mixture: Mixture | RowMixtures, chunk: int | None = None
    ) -> Tensor:
        """Log-probabilities of chosen tokens under the mixed policy; only the policy's hidden states get a gradient.

        Args:
            hidden_K: `[N, H]` of each of `mixture.streams`.
            tokens: `[N]`.
            mixture: the weights; `RowMixtures` has one row for each token.
            chunk: tokens whose logits exist at once; by default about 256 MB of them.

        Returns:
            `[N]`, float32.

        Raises:
            ValueError: a mixture with a plausibility threshold.
        """
        if mixture.plausibility:
            raise ValueError(
                f"plausibility {mixture.plausibility} is for evaluation and generation: in training the ratio of eq. 5 "
                "would be wrong, so set it to 0"
            )
        chunk = chunk or self.chunk
        if (fused := self._fused(hidden_K, mixture)) is not None:
            return linear_log_probs(*fused[:3], tokens, chunk, fused[3])
        return self.of_tokens(token_log_probs, hidden_K, mixture, chunk, tokens)

    def entropies(self, hidden_K: Sequence[Tensor], mixture: Mixture | RowMixtures, chunk: int | None = None) -> Tensor:
        """Entropy of the mixed policy at each token, `[N]`, in nats; arguments and gradient as in `log_probs`."""
        chunk = chunk or self.chunk
        if (fused := self._fused(hidden_K, mixture)) is not None:
            return linear_entropies(*fused[:3], chunk, fused[3])
        return self.of_tokens(entropies, hidden_K, mixture, chunk)

    def divergences(
        self,
        hidden: Tensor,
        student: Mixture,
        teacher: Callable[[Tensor], Tensor],
        divergence: Divergence,
        chunk: int | None = None,
    ) -> Tensor:
        """Divergence of the policy alone from a frozen teacher at each token, over the whole vocabulary.

        Args:
            hidden: `[N, H]` of the policy; only these get a gradient.
            student: the policy alone, with its temperature.
            teacher: maps token indices `[n]`, from 0 to N - 1, to frozen logits `[n, V]`.
            divergence: which divergence.
            chunk: tokens whose logits exist at once; by default about 128 MB for each distribution.

        Returns:
            `[N]` in nats, float32.
        """
        chunk = chunk or max(1, self.chunk // 2)
        rows = torch.arange(len(hidden), device=hidden.device)

        @torch.no_grad()
        def frozen(part: slice | Tensor) -> Tensor:
            return teacher(rows[part])

        if (fused := self._fused([hidden], student)) is not None:
            return linear_divergences(*fused[:3], frozen, divergence, chunk)
        return self.of_tokens(
            lambda logits, part: divergences(logits, frozen(part), divergence), [hidden], student, chunk, rows
        )

    @property
    def chunk(self) -> int:
        """Default number of tokens whose logits exist at once."""
        return max(1, CHUNK_LOGITS // self.vocabulary)

    def _fused(
        self, hidden_K: Sequence[Tensor], mixture: Mixture | RowMixtures
    ) -> tuple[Tensor, Tensor, Tensor | None, Callable[[slice], Tensor] | None] | None:
        """What the closed-form gradients need: mixed hidden states `[N, H]` of the first backbone, its head's weight
        and bias, and the logits that other backbones add to a slice. None if the mixture needs another computation."""
        # only the policy's hidden states may need a gradient, and it is the first stream of any mixture that has it
        places, *others = self._by_head(mixture)
        head = self.heads[mixture.streams[places[0]]]
        plain = head.mixes_hidden(sums_to_one(mixture, places)) and type(head.module) is nn.Linear
        if mixture.kind != "logits" or not plain:
            return None
        weights = mixture.tempered_weights
        mixed_NH = mix_streams([hidden_K[k] for k in places], [weights[k] for k in places])

        def frozen(part: slice) -> Tensor:
            rows = torch.arange(len(mixed_NH), device=mixed_NH.device)[part]
            of_rows = mixture.rows(rows) if isinstance(mixture, RowMixtures) else mixture
            hidden_K_n = [hidden[part] for hidden in hidden_K]
            return sum(self._part(other, hidden_K_n, of_rows) for other in others)  # pyright: ignore

        cut, bias = slice(self.vocabulary), head.module.bias
        bias = None if bias is None else bias[cut]
        return mixed_NH, head.module.weight[cut], bias, frozen if others else None

    def of_tokens(
        self,
        function: Callable[..., Tensor],
        hidden_K: Sequence[Tensor],
        mixture: Mixture | RowMixtures,
        chunk: int,
        *others: Tensor,
    ) -> Tensor:
        """Apply `function(mixed logits [n, V], *others [n]) -> [n]` to all tokens, a chunk at a time. Shapes and
        gradient are as in `log_probs`."""
        # only the policy's hidden states may need a gradient, and it is the first stream of any mixture that has it
        first, *frozen = hidden_K

        def of_chunk(hidden: Tensor, rows: Tensor, *rest: Tensor) -> Tensor:
            of_rows = mixture.rows(rows) if isinstance(mixture, RowMixtures) else mixture
            return function(self.mixed_logits([hidden, *rest[: len(frozen)]], of_rows), *rest[len(frozen) :])

        rows = torch.arange(len(first), device=first.device)
        if not (is_adapted(self.heads[mixture.streams[0]].module) and torch.is_grad_enabled()):
            return tokenwise(of_chunk, first, rows, *frozen, *others, chunk=chunk)
        # the head's LoRA is trained and needs a weight gradient, so use autograd, a chunk at a time
        parts = zip(*(x.split(chunk) for x in (first, rows, *frozen, *others)), strict=True)
        return torch.cat([checkpoint(of_chunk, *part, use_reentrant=False) for part in parts])  # pyright: ignore

    def _by_head(self, mixture: Mixture | RowMixtures) -> list[list[int]]:
        """Indices of the mixture's streams, grouped by head."""
        places: dict[int, list[int]] = {}
        for k, stream in enumerate(mixture.streams):
            places.setdefault(id(self.heads[stream]), []).append(k)
        return list(places.values())

    def _part(self, places: Sequence[int], hidden_K: Sequence[Tensor], mixture: Mixture | RowMixtures) -> Tensor:
        """What the streams at these indices, which share a head, add to the mixed logits."""
        streams, weights = [mixture.streams[k] for k in places], [mixture.tempered_weights[k] for k in places]
        hidden = [hidden_K[k] for k in places]
        return self.heads[streams[0]].weighted_logits(hidden, streams, weights, sums_to_one(mixture, places))


def sums_to_one(mixture: Mixture | RowMixtures, places: Sequence[int]) -> bool:
    """Whether the weights of these streams sum to 1, so that a bias that they share is added exactly once."""
    everything = len(places) == len(mixture.streams)
    return everything and mixture.sums_to_one and mixture.temperature == 1.0
