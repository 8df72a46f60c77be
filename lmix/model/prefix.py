"""Read a prompt once for all completions that share it, with gradient.

Legend: R prompts, S tokens of the longest, B completions, C tokens of the longest, H hidden size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig

from lmix.model.attention import attention_masks


@dataclass
class Prefix:
    """Prompts, and which completion continues which of them."""

    input_ids: Tensor
    """`[R, S]`, padded on the right."""
    lengths: Tensor
    """`[R]`."""
    of_row: Tensor
    """`[B]`, index of each completion's prompt."""


class PrefixCache:
    """Replaces transformers' `Cache` while completions are read: puts the prompts' keys and values before theirs."""

    is_compileable = False

    def __init__(self, prompts: DynamicCache, of_row: Tensor) -> None:
        self.prompts, self.of_row = prompts, of_row

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        before: Any = self.prompts.layers[layer]
        pairs = ((before.keys, keys), (before.values, values))
        both = [torch.cat([old.index_select(0, self.of_row).to(new.dtype), new], dim=2) for old, new in pairs]
        return both[0], both[1]

    def get_seq_length(self, layer: int = 0) -> int:
        return self.prompts.get_seq_length(layer)


def shared_prefix_hidden(
    read: Callable[..., Tensor], config: PretrainedConfig, prefix: Prefix, completion_ids: Tensor, dtype: torch.dtype
) -> Tensor:
    """Hidden states that predict each completion token, by one pass over the prompts and one over the completions.

    Args:
        read: `(input_ids [., T], **arguments of the decoder) -> [., T, H]`, a pass of one stream.
        config: the backbone's configuration.
        prefix: the prompts.
        completion_ids: `[B, C]`, padded on the right.
        dtype: dtype of additive masks.

    Returns:
        `[B, C, H]`; the first state of a row is that of the last prompt token.
    """
    cache = DynamicCache()
    prompts_RSH = read(prefix.input_ids, past_key_values=cache, use_cache=True)
    rows = torch.arange(len(prefix.lengths), device=prompts_RSH.device)
    first_BH = prompts_RSH[rows, prefix.lengths - 1].index_select(0, prefix.of_row)
    if completion_ids.shape[1] == 1:
        return first_BH[:, None]
    fed_BC = completion_ids[:, :-1]
    own = torch.arange(fed_BC.shape[1], device=fed_BC.device)
    before = torch.arange(prefix.input_ids.shape[1], device=fed_BC.device)
    lengths_B = prefix.lengths[prefix.of_row]
    places_BC = lengths_B[:, None] + own
    # the position of each key in its row, and which keys are no padding of a prompt
    keys_BK = torch.cat([before.expand(len(fed_BC), -1), places_BC], dim=1)
    real_BK = torch.cat([before < lengths_B[:, None], torch.ones_like(fed_BC, dtype=torch.bool)], dim=1)
    seen_BCK = (keys_BK[:, None, :] <= places_BC[:, :, None]) & real_BK[:, None, :]
    masks = attention_masks(config, seen_BCK, places_BC[:, :, None], keys_BK[:, None, :], dtype)
    rest_BCH = read(
        fed_BC,
        position_ids=places_BC,
        attention_mask=masks,
        past_key_values=PrefixCache(cache, prefix.of_row),
        use_cache=True,
    )
    return torch.cat([first_BH[:, None], rest_BCH], dim=1)
