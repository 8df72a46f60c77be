"""What sampling gives, and how rollouts are packed for scoring."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase


@dataclass
class Rollout:
    """One completion of one prompt. Tensors are on the CPU."""

    prompt: int
    """Place of the prompt in the list that was sampled from."""
    sample: int
    """Which of the prompt's G samples."""
    prompt_ids: list[int]
    completion_ids: list[int] = field(default_factory=list)
    """Drawn tokens, with the end-of-sequence token where the completion ended by itself."""
    log_probs: Tensor = field(default_factory=lambda: torch.empty(0))
    """`[T]`, of the drawn tokens under the mixed policy, as the sampler saw them."""
    ended: bool = False
    """Whether an end-of-sequence token was drawn within the limit."""
    frozen_hidden: Tensor | None = None
    """`[T, F, H]`, hidden states of the mixture's F frozen streams that each token was drawn from, where asked for."""
    text: str = ""
    """The completion without its end-of-sequence token, once `decode_texts` has run."""

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


def decode_texts(rollouts: Sequence[Rollout], tokenizer: PreTrainedTokenizerBase) -> None:
    """Fill in each rollout's `text`."""
    for r in rollouts:
        r.text = str(tokenizer.decode(r.completion_ids[:-1] if r.ended else r.completion_ids))


@dataclass
class Packed:
    """Rollouts as one right-padded batch. B rows, T tokens of the longest, N completion tokens in all."""

    input_ids: Tensor
    """`[B, T]`; padding is any legal token, and nothing reads it."""
    predicts: Tensor
    """`[N]`, flat places in `[B, T]` whose hidden state predicts a completion token, row by row."""
    targets: Tensor
    """`[N]`, those completion tokens."""
    mask: Tensor
    """`[B, C]`, true for the tokens of each row's completion; C of the longest."""
    frozen_hidden: Tensor | None
    """`[N, F, H]`, where every rollout has it."""

    def unflatten(self, values: Tensor) -> Tensor:
        """`[N]` -> `[B, C]` with zeros in the padding; keeps the gradient."""
        return torch.zeros(self.mask.shape, dtype=values.dtype, device=values.device).masked_scatter(self.mask, values)


def pack(rollouts: Sequence[Rollout], device: torch.device | str = "cpu") -> Packed:
    """Lay rollouts side by side. Masks come from lengths, so a pad token inside a completion counts like any other."""
    width = max(len(r) for r in rollouts)
    input_ids = torch.zeros(len(rollouts), width, dtype=torch.long)
    predicts, targets = [], []
    for row, r in enumerate(rollouts):
        input_ids[row, : len(r)] = torch.tensor(r.prompt_ids + r.completion_ids)
        first = row * width + len(r.prompt_ids) - 1
        predicts.append(torch.arange(first, first + len(r.completion_ids)))
        targets += r.completion_ids
    hidden = [r.frozen_hidden for r in rollouts if r.frozen_hidden is not None]
    return Packed(
        input_ids.to(device),
        torch.cat(predicts).to(device),
        torch.tensor(targets, dtype=torch.long, device=device),
        length_mask(rollouts).to(device),
        torch.cat(hidden).to(device) if len(hidden) == len(rollouts) else None,
    )


def length_mask(rollouts: Sequence[Rollout]) -> Tensor:
    """`[B, C]`, true for the tokens of each completion; C of the longest."""
    lengths = torch.tensor([len(r.completion_ids) for r in rollouts])
    return torch.arange(int(lengths.max())) < lengths[:, None]


def token_budget_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Split rows into micro-batches of at most `budget` padded tokens (a longer row stands alone), longest first.

    Rows of like length come together, so that little is padding.

    Returns:
        Lists of row numbers; every row is in exactly one.
    """
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches
