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

    Exponentials are taken once; sums of blocks of columns are searched first, so that no cumulative sum over the whole
    vocabulary is made. Sums over blocks and inside the block are float64. A token of probability zero is never drawn.

    Args:
        logits: `[B, V]`, float32.
        uniform: `[B]`, float64 in [0, 1).

    Returns:
        Tokens `[B]` int64, and their log-probabilities `[B]` float32.
    """
    rows, width = logits.shape
    top = logits.amax(dim=-1, keepdim=True)
    if torch.compiler.is_compiling():  # it fuses these, and takes no strided `out`
        weights = torch.nn.functional.pad((logits - top).exp(), (0, -width % _BLOCK))
    else:
        weights = logits.new_empty(rows, width + -width % _BLOCK)
        torch.sub(logits, top, out=weights[:, :width]).exp_()
        weights[:, width:] = 0.0
    blocks = weights.view(rows, -1, _BLOCK)
    block_sums = blocks.sum(dim=-1).double()
    block_cdf = block_sums.cumsum(dim=-1)
    total = block_cdf[:, -1]
    target = uniform * total
    block = (block_cdf > target[:, None]).int().argmax(dim=-1)
    inside = blocks[torch.arange(rows, device=logits.device), block].double().cumsum(dim=-1)
    before = (block_cdf - block_sums).gather(1, block[:, None]).squeeze(1)
    # a block's float32 sum and its float64 one differ by rounding: stay below the latter
    rest = torch.minimum((target - before).clamp(min=0.0), inside[:, -1] * (1.0 - 1e-12))
    column = (inside > rest[:, None]).int().argmax(dim=-1)
    tokens = block * _BLOCK + column
    log_probs = (logits.gather(1, tokens[:, None]) - top).squeeze(1) - total.log().float()
    return tokens, log_probs
