"""Rates of judged completions as torchmetrics, exact over batches and ranks."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from lmix.rollout.types import Rollout


class Rate(Metric):
    """The share of judged completions for which `holds` is true."""

    full_state_update = False
    count: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def holds(self, rollout: Rollout) -> bool:
        raise NotImplementedError

    def update(self, rollouts: Sequence[Rollout]) -> None:
        self.count += sum(map(self.holds, rollouts))
        self.total += len(rollouts)

    def compute(self) -> Tensor:
        """The share, float32; NaN before the first completion."""
        return self.count.float() / self.total


class FormatRate(Rate):
    """Completions whose answer template is present, filled and closed."""

    def holds(self, rollout: Rollout) -> bool:
        return rollout.judgement is not None and rollout.judgement.format_correct


class AnswerRate(Rate):
    """Completions with the correct answer in the template, whether or not they ended within the length limit."""

    def holds(self, rollout: Rollout) -> bool:
        return rollout.judgement is not None and rollout.judgement.answer_correct


class RightAnywhereRate(Rate):
    """Completions with the correct answer, in the template or in any other recognised form."""

    def holds(self, rollout: Rollout) -> bool:
        return rollout.judgement is not None and rollout.judgement.right_anywhere


class SolveRate(Rate):
    """Completions that ended by themselves with the correct answer in the template: what `verifier` rewards."""

    def holds(self, rollout: Rollout) -> bool:
        return rollout.solved
