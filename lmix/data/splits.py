"""Disjoint training, validation and held-out problems."""

import logging
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import TypeVar

import torch

from lmix.tasks.task import Problem, Split, Task

log = logging.getLogger(__name__)
T = TypeVar("T")

HELD_OUT = 500
"""Default number of held-out problems (the paper: 500). Out of training problems it takes at most a fifth."""


def split_problems(
    task: Task,
    splits: Sequence[Split],
    eval_size: int | None,
    validation_size: int,
    seed: int | None,
    fits: Callable[[Problem], bool] = lambda _: True,
) -> dict[Split, list[Problem]]:
    """Choose a task's problems.

    Validation and held-out problems come from the task's own splits if it has them, and are otherwise taken out of its
    training problems. Training problems with the same text as a validation or held-out problem are removed. A problem
    that occurs several times is held out only once. Repeated problems are logged, also how many have different answers.

    Args:
        task: the task.
        splits: the splits to return.
        eval_size: number of held-out problems; fewer if the task has fewer. None takes 500, and out of training
            problems at most a fifth of the distinct ones. That fifth is chosen before `fits` removes any, so it is the
            same for every limit.
        validation_size: number of validation problems.
        seed: seed of the choice; None takes the first problems in file order.
        fits: whether a problem can be used. Others are filtered out before the choice, so that the sizes are reached if
            the task has enough problems.

    Returns:
        The problems of each split, sorted by id.

    Raises:
        ValueError: a split would be empty.
    """
    sizes: dict[Split, int] = {"test": HELD_OUT if eval_size is None else eval_size, "validation": validation_size}
    held_out: tuple[Split, ...] = ("test", "validation")
    chosen: dict[Split, list[Problem]] = {}
    wanted: list[Split] = [split for split in held_out if sizes[split] and (split in splits or "train" in splits)]
    carved: list[Split] = [split for split in wanted if split not in task.splits]
    reserved: list[Problem] = []
    for split in wanted:
        if split not in carved:
            problems = task.problems(split)
            report_repeated(problems, split)
            usable: Iterable[Problem] = filter(fits, shuffled(problems, seed))
            chosen[split] = list(islice(usable, sizes[split]))
    if "train" in splits or carved:
        problems = task.problems("train")
        report_repeated(problems, "train")
        order = shuffled(problems, seed)
        pool = [p for p in order if fits(p)]
        elsewhere = {as_text(p) for held in chosen.values() for p in held}
        unique = distinct(pool)
        # from opposite ends, so that neither set depends on the size of the other
        if "test" in carved and eval_size is None:
            everything = distinct(order)
            reserved = everything[: max(1, min(HELD_OUT, len(everything) // 5))]
            chosen["test"] = [p for p in reserved if fits(p)]
            texts = {as_text(p) for p in reserved}
            unique = [p for p in unique if as_text(p) not in texts]
        elif "test" in carved:
            chosen["test"], unique = unique[:eval_size], unique[eval_size:]
        if "validation" in carved:
            unique = [p for p in unique if as_text(p) not in elsewhere]
            chosen["validation"] = unique[max(0, len(unique) - validation_size) :]
    if "train" in splits:
        held = {as_text(p) for part in (reserved, *(chosen[split] for split in wanted)) for p in part}
        train = [p for p in pool if as_text(p) not in held]
        taken = sum(len(chosen[split]) for split in carved)
        if len(train) < len(pool) - taken:
            log.warning(
                "%d training problems left out because they are also in validation or test",
                len(pool) - taken - len(train),
            )
        chosen["train"] = train
    if empty := [split for split in splits if split in chosen and not chosen[split]]:
        raise ValueError(
            f"no problems are left for split {empty[0]}: add problems, or lower data.eval_size "
            f"({'null' if eval_size is None else eval_size}) and data.validation_size ({validation_size}), or raise "
            "data.max_prompt_tokens if all prompts are longer than that"
        )
    return {split: sorted(chosen[split], key=lambda p: p.id) for split in splits if split in chosen}


def distinct(problems: Iterable[Problem]) -> list[Problem]:
    """The problems without those whose text occurred before."""
    first: dict[str, Problem] = {}
    for problem in problems:
        first.setdefault(as_text(problem), problem)
    return list(first.values())


def shuffled(items: Sequence[T], seed: int | None) -> list[T]:
    """The items in an order determined by the seed; without a seed, in their own order."""
    if seed is None:
        return list(items)
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(seed))
    return [items[i] for i in order.tolist()]


def report_repeated(problems: Sequence[Problem], split: Split) -> None:
    """Log how many problems occur several times, and how many of these have different answers."""
    answers: dict[str, list[str]] = {}
    for problem in problems:
        answers.setdefault(as_text(problem), []).append(problem.answer)
    repeated = [found for found in answers.values() if len(found) > 1]
    if repeated:
        differing = sum(len(set(found)) > 1 for found in repeated)
        log.warning("%d %s problems occur more than once, %d with different answers", len(repeated), split, differing)


def as_text(problem: Problem) -> str:
    """The key by which problems count as the same: their messages, ignoring white space and case."""
    said = (*(content for _, content in problem.history), problem.problem)
    return "\n".join(" ".join(text.split()) for text in said).casefold()
