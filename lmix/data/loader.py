"""The order of training problems: a function of seed and position, so that a checkpoint can resume it exactly."""

from collections.abc import Iterator, Sequence
from typing import Any

from lmix.data.splits import shuffled
from lmix.rollout.types import Prompt


class StepLoader:
    """Yields one list of prompts per outer step, in a new seeded order each epoch.

    The last list of an epoch may be shorter. With `validation`, each step also takes that many problems that follow its
    list in the order. A step may then span two epochs, and no list is shorter.

    With several ranks, each rank gets its share of every list. Lightning saves and restores the position, for which it
    needs `state_dict`, `load_state_dict` and `__len__`.

    Args:
        prompts: the training set.
        prompts_per_step: prompts per outer step, over all ranks.
        seed: seed of the order.
        rank, world_size: the rank whose share to yield, and the number of ranks.
        repeat: number of batches of an epoch, which are the same in every epoch (`Trainer.overfit_batches`); null uses
            all prompts, in a new order each epoch.
        shuffle: order the prompts by seed; otherwise every epoch keeps the order of `prompts`.
        validation: number of problems after its list that a step takes for validation.

    Attributes:
        validation_prompts: the validation problems of the latest step, for all ranks.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        prompts_per_step: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        repeat: int | None = None,
        shuffle: bool = True,
        validation: int = 0,
    ) -> None:
        self.prompts, self.prompts_per_step, self.seed = prompts, prompts_per_step, seed
        self.rank, self.world_size = rank, world_size
        self.repeat, self.shuffle, self.validation = repeat, shuffle, validation
        self.validation_prompts: list[Prompt] = []
        self.epoch, self.consumed = 0, 0

    def __len__(self) -> int:
        """Outer steps per epoch. `repeat` does not change it, because Lightning limits the batches itself."""
        return -(-len(self.prompts) // (self.prompts_per_step + self.validation))

    def __iter__(self) -> Iterator[list[Prompt]]:
        if self.validation:
            yield from self.stream()  # endless: Lightning stops after len(self) steps
        end = len(self.prompts)
        if self.repeat is not None:
            end = min(end, self.repeat * self.prompts_per_step)
        if self.consumed >= end:  # Lightning does not exhaust the iterator, so the epoch is advanced here
            self.epoch, self.consumed = self.epoch + 1, 0
        order = self.order(self.epoch if self.repeat is None else 0)
        while self.consumed < end:
            step = order[self.consumed : min(self.consumed + self.prompts_per_step, end)]
            self.consumed += len(step)
            yield step[self.rank :: self.world_size]

    def order(self, epoch: int) -> list[Prompt]:
        """The prompts in the order of an epoch."""
        if not self.shuffle:
            return list(self.prompts)
        # a stride, so that the second epoch of one seed is not the first of the next
        return shuffled(self.prompts, self.seed + 1_000_003 * epoch)

    def stream(self) -> Iterator[list[Prompt]]:
        """Yield the lists of steps, and take the validation problems between them."""
        while True:
            step = self.take(self.prompts_per_step)
            self.validation_prompts = self.take(self.validation)
            yield step[self.rank :: self.world_size]

    def take(self, count: int) -> list[Prompt]:
        """The next `count` prompts, continuing in the next epoch if necessary."""
        taken: list[Prompt] = []
        while len(taken) < count:
            if self.consumed >= len(self.prompts):
                self.epoch, self.consumed = self.epoch + 1, 0
            part = self.order(self.epoch)[self.consumed : self.consumed + count - len(taken)]
            taken += part
            self.consumed += len(part)
        return taken

    def state_dict(self) -> dict[str, Any]:
        """The position in problems, so that a run can resume with a different number of prompts per step."""
        return {"epoch": self.epoch, "consumed": self.consumed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.consumed = state["epoch"], state["consumed"]


class OneBatch:
    """A loader with a single batch of all prompts. Lightning would take a plain list for a list of loaders."""

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self.prompts = prompts

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[list[Prompt]]:
        yield list(self.prompts)
