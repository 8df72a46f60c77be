"""From the streams' hidden states to the mixed distribution: the LM head, before or after which streams are mixed.

Shapes: B rows, N chosen tokens, H hidden size, V vocabulary, K streams of the mixture.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lmix.functional import (
    entropies,
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
"""Logits that exist at once in the update."""


class MixingHead:
    """The backbone's head with the mixture rule around it.

    The head is linear, frozen and shared, so mixing hidden states before it gives the mixed logits with one product and
    one row of width V. Where that is not the same (capped logits, a LoRA on the head, a bias under weights that do not
    sum to 1, averaged probabilities), each stream's logits are computed and mixed.

    Args:
        module: the head; it may carry LoRA layers.
        router: selects the head's adapter.
        softcap: Gemma 2's cap on logits, `cap * tanh(z / cap)`; None for none.
        vocabulary: V.
    """

    def __init__(self, module: Any, router: StreamRouter, softcap: float | None, vocabulary: int) -> None:
        self.module, self.router, self.softcap, self.vocabulary = module, router, softcap, vocabulary

    def mixes_hidden(self, mixture: Mixture | RowMixtures) -> bool:
        """Whether hidden states can be mixed before the head."""
        biased_once = mixture.sums_to_one and mixture.temperature == 1.0
        unbiased = getattr(self.module, "bias", None) is None or biased_once
        return mixture.kind == "logits" and self.softcap is None and not is_adapted(self.module) and unbiased

    def logits(self, hidden: Tensor, stream: str = POLICY) -> Tensor:
        """One stream's logits `[..., V]` from its hidden states `[..., H]`."""
        with self.router.stacked((stream,)):
            logits = self.module(hidden)
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    def mixed_logits(self, hidden_K: Sequence[Tensor], mixture: Mixture | RowMixtures) -> Tensor:
        """Logits of the mixed policy, float32 `[..., V]`; their softmax is eq. 2-3 (or the mixture of probabilities).

        Args:
            hidden_K: `[..., H]` of each of `mixture.streams`; `[B, H]` where the mixture has a row axis.
            mixture: the weights.
        """
        if self.mixes_hidden(mixture):
            return self.module(mix_streams(hidden_K, mixture.tempered_weights)).float()
        pairs = zip(hidden_K, mixture.streams, strict=True)
        logits_K = [self.logits(hidden, stream).float() for hidden, stream in pairs]
        if mixture.kind == "logits":
            return mix_streams(logits_K, mixture.tempered_weights)
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
            mixture: the weights; with a row axis, one row a token.
            chunk: tokens whose logits exist at once; by default about 256 MB of them.

        Returns:
            `[N]`, float32.
        """
        chunk = chunk or self.chunk
        if self.fused(mixture):
            mixed_NH = mix_streams(hidden_K, mixture.tempered_weights)
            return linear_log_probs(mixed_NH, self.module.weight, self.module.bias, tokens, chunk)
        return self._of_tokens(token_log_probs, hidden_K, mixture, chunk, tokens)

    def entropies(self, hidden_K: Sequence[Tensor], mixture: Mixture | RowMixtures, chunk: int | None = None) -> Tensor:
        """Entropy of the mixed policy at each token, `[N]`, in nats; arguments and gradient as in `log_probs`."""
        chunk = chunk or self.chunk
        if self.fused(mixture):
            mixed_NH = mix_streams(hidden_K, mixture.tempered_weights)
            return linear_entropies(mixed_NH, self.module.weight, self.module.bias, chunk)
        return self._of_tokens(entropies, hidden_K, mixture, chunk)

    @property
    def chunk(self) -> int:
        """Tokens whose logits exist at once."""
        return max(1, CHUNK_LOGITS // self.vocabulary)

    def fused(self, mixture: Mixture | RowMixtures) -> bool:
        """Whether one plain product gives the mixed logits, so that their gradient can be written down."""
        return self.mixes_hidden(mixture) and type(self.module) is nn.Linear

    def _of_tokens(
        self,
        function: Callable[..., Tensor],
        hidden_K: Sequence[Tensor],
        mixture: Mixture | RowMixtures,
        chunk: int,
        *others: Tensor,
    ) -> Tensor:
        """`function(mixed logits [n, V], *others [n]) -> [n]` of all tokens, a chunk at a time."""
        # the policy, whose hidden states alone may carry a gradient, is the first stream of any mixture that has it
        first, *frozen = hidden_K

        def of_chunk(hidden: Tensor, rows: Tensor, *rest: Tensor) -> Tensor:
            of_rows = mixture.rows(rows) if isinstance(mixture, RowMixtures) else mixture
            return function(self.mixed_logits([hidden, *rest[: len(frozen)]], of_rows), *rest[len(frozen) :])

        rows = torch.arange(len(first), device=first.device)
        if not (is_adapted(self.module) and torch.is_grad_enabled()):
            return tokenwise(of_chunk, first, rows, *frozen, *others, chunk=chunk)
        # the head itself is trained: it needs a weight gradient, so autograd does the work, a chunk at a time
        parts = zip(*(x.split(chunk) for x in (first, rows, *frozen, *others)), strict=True)
        return torch.cat([checkpoint(of_chunk, *part, use_reentrant=False) for part in parts])  # pyright: ignore
