"""From the streams' hidden states to the mixed distribution: the LM head, before or after which streams are mixed.

Shapes: B rows, N chosen tokens, H hidden size, V vocabulary, K streams of the mixture.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lmix.functional import linear_log_probs, mix_streams, mix_streams_log_probs, token_log_probs, tokenwise
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

    def __init__(self, module: nn.Module, router: StreamRouter, softcap: float | None, vocabulary: int) -> None:
        self.module, self.router, self.softcap, self.vocabulary = module, router, softcap, vocabulary

    def mixes_hidden(self, mixture: Mixture | RowMixtures) -> bool:
        """Whether hidden states can be mixed before the head."""
        unbiased = getattr(self.module, "bias", None) is None or mixture.sums_to_one
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
        weights = mixture.stream_weights
        if self.mixes_hidden(mixture):
            return self.module(mix_streams(hidden_K, weights)).float()
        pairs = zip(hidden_K, mixture.streams, strict=True)
        logits_K = [self.logits(hidden, stream).float() for hidden, stream in pairs]
        if isinstance(mixture, Mixture) and weights == (1.0,):
            return logits_K[0]  # exactly that stream, whichever kind of mixture
        if mixture.kind == "logits":
            return mix_streams(logits_K, weights)
        return mix_streams_log_probs([logits.log_softmax(-1) for logits in logits_K], weights)

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
        chunk = chunk or max(1, CHUNK_LOGITS // self.vocabulary)
        head: Any = self.module
        if self.mixes_hidden(mixture) and type(head) is nn.Linear:
            mixed_NH = mix_streams(hidden_K, mixture.stream_weights)
            return linear_log_probs(mixed_NH, head.weight, head.bias, tokens, chunk)
        # the policy, whose hidden states alone may carry a gradient, is the first stream of any mixture that has it
        first, *others = hidden_K

        def chosen(hidden: Tensor, tokens: Tensor, rows: Tensor, *others: Tensor) -> Tensor:
            of_rows = mixture.rows(rows) if isinstance(mixture, RowMixtures) else mixture
            return token_log_probs(self.mixed_logits([hidden, *others], of_rows), tokens)

        others.insert(0, torch.arange(len(tokens), device=tokens.device))

        if not (is_adapted(head) and torch.is_grad_enabled()):
            return tokenwise(chosen, first, tokens, *others, chunk=chunk)
        # the head itself is trained: it needs a weight gradient, so autograd does the work, a chunk at a time
        parts = zip(*(x.split(chunk) for x in (first, tokens, *others)), strict=True)
        return torch.cat([checkpoint(chosen, *part, use_reentrant=False) for part in parts])  # pyright: ignore
