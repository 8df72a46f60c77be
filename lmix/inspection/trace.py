"""Each token's probability under each stream and the mixture.

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
    """One token of a completion."""

    token: str
    """Its text."""
    probabilities: dict[str, float]
    """Of this token, by each stream of the mixture and by the mixture itself."""
    tops: dict[str, list[tuple[str, float]]]
    """The most probable tokens there, by the same, the most probable first."""

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
    """Score a completion, whoever drew it, by every stream of the mixture and by the mixture; one stacked pass.

    Args:
        policy: the streams.
        mixture: what is shown beside them.
        tokenizer: the backbone's.
        prompt_ids: what came before; not empty.
        completion_ids: T tokens.
        top: how many of the most probable tokens to keep at each place.

    Returns:
        One for each token.
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
    found = {}
    for name, logits_TV in logits.items():
        probabilities_TV = logits_TV.softmax(-1)
        values, tokens = probabilities_TV.topk(min(top, probabilities_TV.shape[-1]))
        found[name] = (probabilities_TV.gather(1, chosen)[:, 0].tolist(), values.tolist(), tokens.tolist())
    return [
        TokenTrace(
            token_text(tokenizer, token),
            {name: of[0][place] for name, of in found.items()},
            {
                name: [(token_text(tokenizer, t), v) for t, v in zip(of[2][place], of[1][place], strict=True)]
                for name, of in found.items()
            },
        )
        for place, token in enumerate(completion_ids)
    ]


def disputed(token: TokenTrace) -> float:
    """How differently the streams see a token: the range of their probabilities."""
    probabilities = [p for name, p in token.probabilities.items() if name != MIXTURE]
    return max(probabilities) - min(probabilities)


def token_text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """One token as text; an end-of-sequence token by its name."""
    return str(tokenizer.decode([token]))
