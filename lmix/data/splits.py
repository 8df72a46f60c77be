"""Training, validation and held-out problems that share none."""

import logging
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import TypeVar

import torch

from lmix.tasks.task import Problem, Split, Task

log = logging.getLogger(__name__)
T = TypeVar("T")


def split_problems(
    task: Task,
    splits: Sequence[Split],
    eval_size: int,
    validation_size: int,
    seed: int,
    fits: Callable[[Problem], bool] = lambda _: True,
) -> dict[Split, list[Problem]]:
    """Choose a task's problems by seed.

    Validation and held-out problems come from the task's own splits where it has them, and are taken out of its
    training problems otherwise. A training problem that is also a validation or held-out one, by its text, is left out.

    Args:
        splits: which are wanted.
        eval_size: held-out problems, or fewer where the task has fewer.
        validation_size: the same for validation.
        fits: whether a problem can be used at all; others are passed over before any is chosen, so that as many are
            found as were asked for.

    Raises:
        ValueError: a split would be empty.
    """
    sizes: dict[Split, int] = {"test": eval_size, "validation": validation_size}
    held_out: tuple[Split, ...] = ("test", "validation")
    chosen: dict[Split, list[Problem]] = {}
    wanted: list[Split] = [split for split in held_out if sizes[split] and (split in splits or "train" in splits)]
    carved: list[Split] = [split for split in wanted if split not in task.splits]
    if "train" in splits or carved:
        pool = [p for p in shuffled(task.problems("train"), seed) if fits(p)]
        # from the two ends, so that each is the same whatever the size of the other
        if "test" in carved:
            chosen["test"], pool = pool[:eval_size], pool[eval_size:]
        if "validation" in carved:
            start = max(0, len(pool) - validation_size)
            chosen["validation"], pool = pool[start:], pool[:start]
    for split in wanted:
        if split not in carved:
            usable: Iterable[Problem] = filter(fits, shuffled(task.problems(split), seed))
            chosen[split] = list(islice(usable, sizes[split]))
    if "train" in splits:
        held = {as_text(p) for split in wanted for p in chosen[split]}
        train = [p for p in pool if as_text(p) not in held]
        if len(train) < len(pool):
            log.warning("%d training problems left out: validation or test has them too", len(pool) - len(train))
        chosen["train"] = train
    if empty := [split for split in splits if split in chosen and not chosen[split]]:
        raise ValueError(
            f"no problem is left for {empty[0]}: the task has too few for data.eval_size {eval_size} "
            f"and data.validation_size {validation_size}, or all prompts are longer than data.max_prompt_tokens"
        )
    return {split: sorted(chosen[split], key=lambda p: p.id) for split in splits if split in chosen}


def shuffled(items: Sequence[T], seed: int) -> list[T]:
    """The same items in an order that the seed decides."""
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(seed))
    return [items[i] for i in order.tolist()]


def as_text(problem: Problem) -> str:
    """What makes two problems the same: their text, whatever its white space and case."""
    return " ".join(problem.problem.split()).casefold()
