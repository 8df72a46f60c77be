"""How rollouts are laid out in batches for scoring."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lmix.model.prefix import Prefix
from lmix.rollout.limits import Limits
from lmix.rollout.types import Rollout

WORTH_SHARING = 0.9
"""Prompts are shared only if this leaves less than this fraction of the tokens, because the mask has a cost."""


@dataclass
class Packed:
    """Rollouts as one right-padded batch. B rows, T tokens of the longest, N completion tokens in all."""

    input_ids: Tensor
    """`[B, T]`, prompts with completions; with a prefix, completions only. Padding is any valid token, and is never
    read."""
    predicts: Tensor
    """`[N]`, flat indices into `MixedPolicy.stream_hidden`'s `[B, T]` that predict a completion token, row by row."""
    targets: Tensor
    """`[N]`, those completion tokens."""
    positions: Tensor
    """`[N]`, position of each of them in its completion, from 0."""
    mask: Tensor
    """`[B, C]`, true for the tokens of each row's completion; C of the longest."""
    counted: Tensor
    """`[B, C]`, true for completion tokens that count in the loss."""
    frozen_hidden: dict[str, Tensor]
    """`[N, H]` of each frozen stream; empty unless every rollout has it."""
    demonstration: Tensor
    """`[B]`, bool: rows that were not sampled."""
    prefix: Prefix | None = None
    """The prompts, each once, if rows share them."""
    limits: Limits | None = None
    """Limits that the sampled rows were drawn with."""

    def unflatten(self, values: Tensor) -> Tensor:
        """`[N]` -> `[B, C]` with zeros in the padding; keeps the gradient."""
        return torch.zeros(self.mask.shape, dtype=values.dtype, device=values.device).masked_scatter(self.mask, values)


def pack(rollouts: Sequence[Rollout], device: torch.device | str = "cpu", share_prompts: bool = False) -> Packed:
    """Lay rollouts side by side. Masks come from lengths, so a pad token inside a completion counts like any other.

    Args:
        share_prompts: keep each prompt once, apart from the completions.
    """
    targets = [token for r in rollouts for token in r.completion_ids]
    kept = [r.frozen_hidden for r in rollouts if r.frozen_hidden is not None]
    names = kept[0] if len(kept) == len(rollouts) else ()
    mask = length_mask(rollouts)
    prefix = None
    if share_prompts:
        prompts = {id(r.prompt): r.prompt.ids for r in rollouts}
        place = {prompt: i for i, prompt in enumerate(prompts)}
        lengths = torch.tensor([len(ids) for ids in prompts.values()], device=device)
        of_row = torch.tensor([place[id(r.prompt)] for r in rollouts], device=device)
        prefix = Prefix(pad_right(list(prompts.values())).to(device), lengths, of_row)
        input_ids = pad_right([r.completion_ids for r in rollouts])
        predicts = mask.flatten().nonzero().flatten()
    else:
        input_ids = pad_right([r.prompt.ids + r.completion_ids for r in rollouts])
        firsts = [row * input_ids.shape[1] + len(r.prompt.ids) - 1 for row, r in enumerate(rollouts)]
        ranges = [torch.arange(f, f + len(r.completion_ids)) for f, r in zip(firsts, rollouts, strict=True)]
        predicts = torch.cat(ranges)
    return Packed(
        input_ids.to(device),
        predicts.to(device),
        torch.tensor(targets, dtype=torch.long, device=device),
        torch.cat([torch.arange(len(r.completion_ids)) for r in rollouts]).to(device),
        mask.to(device),
        counted_mask(rollouts).to(device),
        {name: torch.cat([hidden[name] for hidden in kept]).to(device) for name in names},
        torch.tensor([r.is_demonstration for r in rollouts], device=device),
        prefix,
        next((r.limits for r in rollouts if r.limits is not None), None),
    )


def pad_right(rows: Sequence[Sequence[int]]) -> Tensor:
    """Token ids as one tensor `[B, T]`, padded with 0."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], dtype=torch.long)


def length_mask(rollouts: Sequence[Rollout]) -> Tensor:
    """`[B, C]`, true for the tokens of each completion; C of the longest."""
    lengths = torch.tensor([len(r.completion_ids) for r in rollouts])
    return torch.arange(int(lengths.max())) < lengths[:, None]


def counted_mask(rollouts: Sequence[Rollout]) -> Tensor:
    """`[B, C]`, true for tokens that count in the loss: the completion's, unless `Rollout.mask` excludes them."""
    counted = length_mask(rollouts)
    for row, rollout in enumerate(rollouts):
        if rollout.mask is not None:
            counted[row, : len(rollout.mask)] &= rollout.mask
    return counted


def mini_batch_places(places: Sequence[int], total: int, parts: int) -> list[list[int]]:
    """Split a step's groups in order into mini-batches that differ by one group at most.

    Args:
        places: indices of this rank's groups among those of all ranks.
        total: number of groups of all ranks.
        parts: number of mini-batches; if there are fewer groups, each group is one.

    Returns:
        For each mini-batch, indices into `places`; none if this rank has no group in it.
    """
    parts = min(parts, total)
    return [[i for i, place in enumerate(places) if place * parts // total == part] for part in range(parts)]


def token_budget_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Split rows into micro-batches of at most `budget` padded tokens (a longer row is one by itself), longest first.

    Rows of similar length are put together, so that there is little padding.

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


def micro_batches(rollouts: Sequence[Rollout], budget: int, share_prompts: bool = True) -> tuple[list[list[int]], bool]:
    """Split rollouts into passes of at most `budget` padded tokens, by the cheaper of two plans.

    The first plan has whole rows, those of similar length together. The second reads each prompt once for all of its
    completions in the same pass.

    Args:
        rollouts: the rows.
        budget: maximum padded tokens of a pass.
        share_prompts: whether the second plan is allowed.

    Returns:
        Lists of row numbers, every row in exactly one; and whether to pack them with `share_prompts`.
    """
    whole = token_budget_batches([len(r) for r in rollouts], budget)
    if not share_prompts:
        return whole, False
    shared = shared_prompt_batches(rollouts, budget)
    cost_whole = sum(len(rows) * max(len(rollouts[i]) for i in rows) for rows in whole)
    cost_shared = sum(shared_tokens([rollouts[i] for i in rows]) for rows in shared)
    return (shared, True) if cost_shared < WORTH_SHARING * cost_whole else (whole, False)


def shared_prompt_batches(rollouts: Sequence[Rollout], budget: int) -> list[list[int]]:
    """Split rows into micro-batches that keep the rows of one prompt together, as far as the budget allows.

    Prompts whose completions have similar lengths are put together.
    """
    longest: dict[int, int] = {}
    place: dict[int, int] = {}
    for r in rollouts:
        prompt = id(r.prompt)
        longest[prompt] = max(longest.get(prompt, 0), len(r.completion_ids))
        place.setdefault(prompt, len(place))

    def order(i: int) -> tuple[int, int, int]:
        prompt = id(rollouts[i].prompt)
        return -longest[prompt], place[prompt], -len(rollouts[i].completion_ids)

    batches: list[list[int]] = []
    for row in sorted(range(len(rollouts)), key=order):
        if batches and shared_tokens([rollouts[i] for i in [*batches[-1], row]]) <= budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def shared_tokens(rollouts: Sequence[Rollout]) -> int:
    """Padded tokens of a pass over rollouts whose prompts are read once each."""
    prompts = {id(r.prompt): len(r.prompt.ids) for r in rollouts}
    return len(prompts) * max(prompts.values()) + len(rollouts) * max(len(r.completion_ids) for r in rollouts)
