"""Format and solve rates as torchmetrics: exact over batches and ranks."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from lmix.tasks.task import Judgement


class _Rate(Metric):
    """A share of judged completions."""

    full_state_update = False
    count: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def add(self, flags: Sequence[bool]) -> None:
        self.count += sum(flags)
        self.total += len(flags)

    def compute(self) -> Tensor:
        """The share, float32; NaN before the first completion."""
        return self.count.float() / self.total


class FormatRate(_Rate):
    """Share of completions whose answer template is there, filled and closed."""

    def update(self, judgements: Sequence[Judgement]) -> None:
        self.add([j.format_correct for j in judgements])


class SolveRate(_Rate):
    """Share of completions that are format-correct and right."""

    def update(self, judgements: Sequence[Judgement]) -> None:
        self.add([j.answer_correct for j in judgements])
