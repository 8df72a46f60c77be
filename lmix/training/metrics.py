"""Format, answer and solve rates as torchmetrics: exact over batches and ranks."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from lmix.training.completions import CompletionRow


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

    def update(self, rows: Sequence[CompletionRow]) -> None:
        self.add([row.format_correct for row in rows])


class AnswerRate(_Rate):
    """Share of completions with the right answer in the template, whether or not they ended by themselves."""

    def update(self, rows: Sequence[CompletionRow]) -> None:
        self.add([row.answer_correct for row in rows])


class SolveRate(_Rate):
    """Share of completions that are rewarded: the right answer in the template, and ended by themselves."""

    def update(self, rows: Sequence[CompletionRow]) -> None:
        self.add([row.solved for row in rows])
