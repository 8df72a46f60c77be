"""The order of training problems, as a function of (seed, step) that a checkpoint can name."""

from collections.abc import Iterator, Sequence
from typing import Any

from lmix.data.splits import shuffled
from lmix.rollout.types import Prompt


class StepLoader:
    """One list of prompts an outer step, in a new seeded order each epoch. The last list of an epoch may be shorter.

    With `validation`, each step also takes that many of the problems that follow, which are not part of its list. A
    step may then span two epochs, and no list is shorter.

    With several ranks each gets its share of every list, whole groups. Lightning saves and restores the position, which
    needs `state_dict`, `load_state_dict` and `__len__`.

    Args:
        prompts: the training set.
        prompts_per_step: prompts of one outer step, over all ranks.
        seed: of the order.
        rank, world_size: whose share this is.
        repeat: batches that each epoch consists of, the same in each (`Trainer.overfit_batches`); null for all prompts
            in a new order each epoch.
        shuffle: take an order by seed; otherwise it is that of `prompts`, each epoch.
        validation: problems that a step takes from the order after its list.

    Attributes:
        validation_prompts: these of the newest step, of all ranks.
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
        """Outer steps an epoch; those of all prompts under `repeat` too, as Lightning counts the batches itself."""
        return -(-len(self.prompts) // (self.prompts_per_step + self.validation))

    def __iter__(self) -> Iterator[list[Prompt]]:
        if self.validation:
            yield from self.stream()  # without an end: Lightning stops after as many steps as it takes for an epoch
        end = len(self.prompts)
        if self.repeat is not None:
            end = min(end, self.repeat * self.prompts_per_step)
        if self.consumed >= end:  # Lightning stops asking after the last list: the epoch ends here
            self.epoch, self.consumed = self.epoch + 1, 0
        order = self.order(self.epoch if self.repeat is None else 0)
        while self.consumed < end:
            step = order[self.consumed : min(self.consumed + self.prompts_per_step, end)]
            self.consumed += len(step)
            yield step[self.rank :: self.world_size]

    def order(self, epoch: int) -> list[Prompt]:
        """The problems of an epoch in its order."""
        if not self.shuffle:
            return list(self.prompts)
        # a stride, so that the second epoch of one seed is not the first of the next
        return shuffled(self.prompts, self.seed + 1_000_003 * epoch)

    def stream(self) -> Iterator[list[Prompt]]:
        """The lists of steps that leave problems for validation between them."""
        while True:
            step = self.take(self.prompts_per_step)
            self.validation_prompts = self.take(self.validation)
            yield step[self.rank :: self.world_size]

    def take(self, count: int) -> list[Prompt]:
        """The next problems, over the end of an epoch if need be."""
        taken: list[Prompt] = []
        while len(taken) < count:
            if self.consumed >= len(self.prompts):
                self.epoch, self.consumed = self.epoch + 1, 0
            part = self.order(self.epoch)[self.consumed : self.consumed + count - len(taken)]
            taken += part
            self.consumed += len(part)
        return taken

    def state_dict(self) -> dict[str, Any]:
        """In problems, so that a run may go on with another number of prompts a step."""
        return {"epoch": self.epoch, "consumed": self.consumed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.consumed = state["epoch"], state["consumed"]


class OneBatch:
    """A loader whose only batch is all of its prompts (a plain list would be taken for a list of loaders)."""

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self.prompts = prompts

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[list[Prompt]]:
        yield list(self.prompts)
