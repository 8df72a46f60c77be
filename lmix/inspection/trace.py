"""The probability of each token under each stream and under the mixture.

Legend: T tokens of the completion, K streams, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lmix.model.mixed_policy import MixedPolicy
from lmix.model.mixture import Mixture

MIXTURE = "mixture"


@dataclass(frozen=True)
class TokenTrace:
    """One token of a completion with its probabilities."""

    token: str
    """The token's text."""
    probabilities: dict[str, float]
    """Probability of the token under each stream and under the mixture, by name."""
    tops: dict[str, list[tuple[str, float]]]
    """The most probable tokens at this position with their probabilities, in descending order, by the same names."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@torch.no_grad()
def trace(
    policy: MixedPolicy,
    mixture: Mixture,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[int],
    completion_ids: Sequence[int],
    top: int = 5,
) -> list[TokenTrace]:
    """Score a completion under every stream of the mixture and under the mixture, in one stacked pass.

    The completion may come from any policy.

    Args:
        policy: the mixed policy.
        mixture: the mixture to score under, with its streams.
        tokenizer: the backbone's tokenizer.
        prompt_ids: the prompt's tokens; not empty.
        completion_ids: the completion's T tokens.
        top: number of most probable tokens to keep at each position.

    Returns:
        The trace of each token.
    """
    if not completion_ids:
        return []
    ids = torch.tensor([[*prompt_ids, *completion_ids]], device=policy.device)
    hidden_K = [hidden_BTH[0, len(prompt_ids) - 1 : -1] for hidden_BTH in policy.hidden(ids, mixture.streams)]
    logits: dict[str, Tensor] = {
        name: policy.head.logits(hidden, name).float() for name, hidden in zip(mixture.streams, hidden_K, strict=True)
    }
    logits[MIXTURE] = policy.mixed_logits(hidden_K, mixture)
    chosen = torch.tensor(completion_ids, device=policy.device)[:, None]
    by_stream = {}
    for name, logits_TV in logits.items():
        probabilities_TV = logits_TV.softmax(-1)
        values, tokens = probabilities_TV.topk(min(top, probabilities_TV.shape[-1]))
        by_stream[name] = (probabilities_TV.gather(1, chosen)[:, 0].tolist(), values.tolist(), tokens.tolist())
    return [
        TokenTrace(
            token_text(tokenizer, token),
            {name: of[0][place] for name, of in by_stream.items()},
            {
                name: [(token_text(tokenizer, t), v) for t, v in zip(of[2][place], of[1][place], strict=True)]
                for name, of in by_stream.items()
            },
        )
        for place, token in enumerate(completion_ids)
    ]


def disputed(token: TokenTrace) -> float:
    """How much the streams differ on a token: the range of their probabilities for it."""
    probabilities = [p for name, p in token.probabilities.items() if name != MIXTURE]
    return max(probabilities) - min(probabilities)


def token_text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """One token as text; special tokens appear by name."""
    return str(tokenizer.decode([token]))
