"""Several ranks: each has its own prompts, and all have the same adapters. What they do together."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext

import lightning as L
import torch
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor

from lmix.training.strategies import ShardedStrategy


class RankedModule(L.LightningModule):
    """A module whose ranks may differ in how many passes they make. Works without a trainer too, as one rank."""

    @property
    def root_device(self) -> torch.device:
        """Where the model goes: the module itself is moved there only after `configure_model`."""
        return self.device if self._trainer is None else self.trainer.strategy.root_device

    @property
    def ranks(self) -> int:
        return 1 if self._trainer is None else self.trainer.world_size

    @property
    def rank(self) -> int:
        return 0 if self._trainer is None else self.trainer.global_rank

    @property
    def sharded(self) -> bool:
        """Whether every pass needs all ranks, as each has a part of the backbone only."""
        return self._trainer is not None and isinstance(self.trainer.strategy, ShardedStrategy)

    def idle_passes(self, passes: int) -> int:
        """How many passes this rank must make beside its own, where each needs all ranks. Every rank must call it, and
        before its own."""
        if not self.sharded:
            return 0
        return int(self.largest_of_ranks([passes])[0]) - passes

    def sum_over_ranks(self, values: Sequence[float]) -> list[float]:
        """Add up numbers over all ranks. Every rank must call it."""
        if self.ranks == 1:
            return list(values)
        here = torch.tensor(values, dtype=torch.float64, device=self.root_device)
        return self.trainer.strategy.reduce(here, reduce_op="sum").tolist()  # pyright: ignore

    def largest_of_ranks(self, values: Sequence[float]) -> list[float]:
        """The largest of each number over all ranks. Every rank must call it."""
        if self.ranks == 1:
            return list(values)
        here = torch.tensor(values, dtype=torch.float64, device=self.root_device)
        return self.trainer.strategy.reduce(here, reduce_op="max").tolist()  # pyright: ignore

    def gather_shares(self, values: Sequence[float]) -> list[float]:
        """A number for each of this rank's prompts -> for those of all ranks, in the step's order. Every rank must call
        it. Rank r of W has every W-th prompt of a step, from the r-th on."""
        (total,) = self.sum_over_ranks([len(values)])
        everyone = [0.0] * int(total)
        everyone[self.rank :: self.ranks] = values
        return self.sum_over_ranks(everyone)

    def copy_from_rank_0(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors, in place, by those of rank 0, whose number and shapes are the same. Every rank must call
        it."""
        if self.ranks == 1:
            return
        for tensor in tensors:
            there = tensor.detach().to(self.root_device)  # NCCL takes none from a CPU
            torch.distributed.broadcast(there, src=0)
            tensor.detach().copy_(there)

    def backward_here(self, loss: Tensor) -> None:
        """Add a loss's gradient on this rank only: ranks may differ in how many they have. `step_optimizer` sums."""
        strategy = self.trainer.strategy if self._trainer is not None else None
        with strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext():
            self.manual_backward(loss)

    def log_over_ranks(
        self,
        means: Mapping[str, tuple[float, float]],
        sums: Mapping[str, float],
        same: Mapping[str, float],
        largest: Mapping[str, float] | None = None,
    ) -> None:
        """Log a step's figures of all ranks together. Every rank must call it, with the same names.

        Args:
            means: name -> (sum here, count here); 0 where no rank has any.
            sums: name -> what is here.
            same: name -> what is equal on all ranks.
            largest: name -> the largest value here.
        """
        pairs = [number for pair in means.values() for number in pair]
        total = self.sum_over_ranks([*pairs, *sums.values()])
        figures = dict(zip(sums, total[len(pairs) :], strict=True))
        for name, value, count in zip(means, total[0 : len(pairs) : 2], total[1 : len(pairs) : 2], strict=True):
            figures[name] = value / count if count else 0.0
        if largest:
            figures |= dict(zip(largest, self.largest_of_ranks(list(largest.values())), strict=True))
        self.log_dict(figures | dict(same), batch_size=1)
