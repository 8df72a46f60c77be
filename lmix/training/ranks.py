"""Communication between ranks. Each rank has its own prompts, and all have the same adapters."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext

import lightning as L
import torch
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor

from lmix.training.strategies import ShardedStrategy


class RankedModule(L.LightningModule):
    """A module whose ranks may make different numbers of passes. Without a trainer it acts as a single rank."""

    @property
    def root_device(self) -> torch.device:
        """The device of the model. The module itself is moved there only after `configure_model`."""
        return self.device if self._trainer is None else self.trainer.strategy.root_device

    @property
    def ranks(self) -> int:
        return 1 if self._trainer is None else self.trainer.world_size

    @property
    def rank(self) -> int:
        return 0 if self._trainer is None else self.trainer.global_rank

    @property
    def sharded(self) -> bool:
        """Whether the backbone is sharded over ranks, so that every pass needs all of them."""
        return self._trainer is not None and isinstance(self.trainer.strategy, ShardedStrategy)

    def idle_passes(self, passes: int) -> int:
        """How many passes this rank must make in addition to its own `passes`, so that all ranks make equally many.

        0 unless the backbone is sharded. Every rank must call it, before its own passes.
        """
        if not self.sharded:
            return 0
        return int(self.largest_of_ranks([passes])[0]) - passes

    def sum_over_ranks(self, values: Sequence[float]) -> list[float]:
        """Sum numbers over all ranks. Every rank must call it."""
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
        """Gather one number per prompt from all ranks, in the step's order. Every rank must call it.

        Rank r of W has every W-th prompt of a step, starting at prompt r.
        """
        (total,) = self.sum_over_ranks([len(values)])
        everyone = [0.0] * int(total)
        everyone[self.rank :: self.ranks] = values
        return self.sum_over_ranks(everyone)

    def copy_from_rank_0(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors in place with those of rank 0, which must match in number and shapes.

        Every rank must call it.
        """
        if self.ranks == 1:
            return
        for tensor in tensors:
            there = tensor.detach().to(self.root_device)  # NCCL can't broadcast CPU tensors
            torch.distributed.broadcast(there, src=0)
            tensor.detach().copy_(there)

    def backward_here(self, loss: Tensor) -> None:
        """Add a loss's gradient on this rank, without synchronisation: ranks may have different numbers of passes.

        `step_optimizer` sums the gradients over ranks.
        """
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
        """Log a step's metrics, reduced over all ranks. Every rank must call it, with the same names.

        Args:
            means: name -> (this rank's sum, this rank's count), logged as a mean; 0 if the total count is 0.
            sums: name -> this rank's value, logged as a sum.
            same: name -> a value that is equal on all ranks.
            largest: name -> this rank's value, logged as a maximum.
        """
        pairs = [number for pair in means.values() for number in pair]
        total = self.sum_over_ranks([*pairs, *sums.values()])
        figures = dict(zip(sums, total[len(pairs) :], strict=True))
        for name, value, count in zip(means, total[0 : len(pairs) : 2], total[1 : len(pairs) : 2], strict=True):
            figures[name] = value / count if count else 0.0
        if largest:
            figures |= dict(zip(largest, self.largest_of_ranks(list(largest.values())), strict=True))
        self.log_dict(figures | dict(same), batch_size=1)
