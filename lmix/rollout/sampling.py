"""Choose a token from logits: greedily, or by inverse CDF from one uniform number a row."""

import torch
from torch import Tensor

_BLOCK = 512  # columns that are summed at once; a row's CDF is first searched by block, then inside one block


def greedy(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The most probable token and its log-probability: `[B, V]` -> `[B]`, `[B]`."""
    top, tokens = logits.max(dim=-1)
    return tokens, top - logits.logsumexp(dim=-1)


def inverse_cdf(logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Draw from softmax(logits): the first token whose cumulative probability exceeds the row's uniform number.

    Sums of blocks of columns are searched first, so that no cumulative sum over the whole vocabulary is made. Sums over
    blocks and inside the block are float64. A token of probability zero is never drawn.

    Args:
        logits: `[B, V]`, float32.
        uniform: `[B]`, float64 in [0, 1).

    Returns:
        Tokens `[B]` int64, and their log-probabilities `[B]` float32.
    """
    width = logits.shape[1]
    whole = width // _BLOCK
    probs = logits.softmax(dim=-1)
    sums = [probs[:, : whole * _BLOCK].unflatten(1, (whole, _BLOCK)).sum(dim=-1)]
    if width % _BLOCK:
        sums.append(probs[:, whole * _BLOCK :].sum(dim=-1, keepdim=True))
    block_sums = torch.cat(sums, dim=1).double()
    block_cdf = block_sums.cumsum(dim=-1)
    target = uniform * block_cdf[:, -1]
    block = _first_above(block_cdf, target)
    columns = block[:, None] * _BLOCK + torch.arange(_BLOCK, device=logits.device)
    inside = probs.gather(1, columns.clamp(max=width - 1)).masked_fill(columns >= width, 0.0).double().cumsum(dim=-1)
    before = (block_cdf - block_sums).gather(1, block[:, None]).squeeze(1)
    # a block's float32 sum and its float64 one differ by rounding: stay below the latter
    rest = torch.minimum((target - before).clamp(min=0.0), inside[:, -1] * (1.0 - 1e-12))
    tokens = block * _BLOCK + _first_above(inside, rest)
    return tokens, probs.gather(1, tokens[:, None]).squeeze(1).log()


def _first_above(cdf: Tensor, bound: Tensor) -> Tensor:
    """Each row's first column with `cdf > bound`, 0 if there is none (NaN): `[B, N]`, `[B]` -> `[B]`.

    Not an argmax, nor any other reduction: Inductor fuses it with the writes of the drawn token, and Triton 3.6 can't
    compile that kernel for a large vocabulary ("operand #1 does not dominate this use"). A binary search is pointwise.
    """
    return torch.searchsorted(cdf, bound[:, None], right=True).squeeze(1) % cdf.shape[1]
