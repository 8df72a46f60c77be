"""The order of training problems, as a function of (seed, step) that a checkpoint can name."""

from collections.abc import Iterator, Sequence
from typing import Any

from lmix.data.example import Example
from lmix.data.splits import shuffled


class StepLoader:
    """One list of examples an outer step, in a new seeded order each epoch. The last list of an epoch may be shorter.

    With several ranks each gets its share of every list, whole groups. Lightning saves and restores the position, which
    needs `state_dict`, `load_state_dict` and `__len__`.

    Args:
        examples: the training set.
        prompts: prompts of one outer step, over all ranks.
        seed: of the order.
        rank, world_size: whose share this is.
        repeat: batches that each epoch consists of, the same in each (`Trainer.overfit_batches`); null for all examples
            in a new order each epoch.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        prompts: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        repeat: int | None = None,
    ) -> None:
        self.examples, self.prompts, self.seed = examples, prompts, seed
        self.rank, self.world_size = rank, world_size
        self.repeat = repeat
        self.epoch, self.consumed = 0, 0

    def __len__(self) -> int:
        """Outer steps an epoch; those of all examples under `repeat` too, as Lightning counts the batches itself."""
        return -(-len(self.examples) // self.prompts)

    def __iter__(self) -> Iterator[list[Example]]:
        end = len(self.examples)
        if self.repeat is not None:
            end = min(end, self.repeat * self.prompts)
        if self.consumed >= end:  # Lightning stops asking after the last list: the epoch ends here
            self.epoch, self.consumed = self.epoch + 1, 0
        # a stride, so that the second epoch of one seed is not the first of the next
        order = shuffled(self.examples, self.seed + 1_000_003 * (self.epoch if self.repeat is None else 0))
        while self.consumed < end:
            step = order[self.consumed : min(self.consumed + self.prompts, end)]
            self.consumed += len(step)
            yield step[self.rank :: self.world_size]

    def state_dict(self) -> dict[str, Any]:
        """In problems, so that a run may go on with another number of prompts a step."""
        return {"epoch": self.epoch, "consumed": self.consumed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.consumed = state["epoch"], state["consumed"]


class OneBatch:
    """A loader whose only batch is all of its examples (a plain list would be taken for a list of loaders)."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[list[Example]]:
        yield list(self.examples)
