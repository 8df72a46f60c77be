"""Synthetic word problems with several steps of arithmetic: the task of the bundled model.

A problem describes in two to four steps how many things a person has. Its solution has one equation per step. The
vocabulary is small, so that a model with 0.8M parameters can read and solve the problems.
"""

import itertools
import random
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from lmix.tasks.task import Problem, Split, Task

SPLITS: tuple[Split, ...] = ("train", "validation", "test")

_PEOPLE = ("Tom", "Ann", "Sam", "Mia", "Leo", "Eva", "Max", "Zoe", "Ben", "Ida")
_THINGS = ("apples", "books", "coins", "cards", "pens", "shells", "stamps", "eggs", "cups", "rings")
_GAINS = ("buys {n} more", "finds {n} more", "gets {n} from a friend", "wins {n} in a game")
_LOSSES = ("gives {n} to a friend", "loses {n} on the way", "sells {n} at the market", "breaks {n} by accident")
_FACTORS = {2: "doubles what is there", 3: "triples what is there"}
_MAX_VALUE = 199


def arithmetic_row(rng: random.Random, steps: tuple[int, ...] = (2, 3, 4)) -> dict[str, str]:
    """Draw one problem.

    Args:
        rng: the random generator.
        steps: numbers of steps to choose from.

    Returns:
        A row with `problem`, `solution` (one equation per step, no closing sentence) and `answer` (a whole number).
    """
    value = rng.randint(5, 60)
    name = rng.choice(_PEOPLE)
    thing = rng.choice(_THINGS)
    sentences = [f"{name} has {value} {thing}."]
    equations = []
    for _ in range(rng.choice(steps)):
        before = value
        kind = rng.choices(("gain", "loss", "factor"), weights=(4, 4, 1))[0]
        if (kind == "factor" and value > _MAX_VALUE // 3) or (kind == "gain" and value > _MAX_VALUE - 60):
            kind = "loss"
        if kind == "loss" and value < 6:
            kind = "gain"
        if kind == "gain":
            n = rng.randint(3, 60)
            value += n
            sentences.append(f"{name} {rng.choice(_GAINS).format(n=n)}.")
            equations.append(f"{before} + {n} = {value}.")
        elif kind == "loss":
            n = rng.randint(3, min(60, value - 1))
            value -= n
            sentences.append(f"{name} {rng.choice(_LOSSES).format(n=n)}.")
            equations.append(f"{before} - {n} = {value}.")
        else:
            n = rng.choice(tuple(_FACTORS))
            value *= n
            sentences.append(f"{name} {_FACTORS[n]}.")
            equations.append(f"{before} * {n} = {value}.")
    sentences.append(f"How many {thing} does {name} have now?")
    return {"problem": " ".join(sentences), "solution": " ".join(equations), "answer": str(value)}


def arithmetic_rows(split: str, seed: int = 0, steps: tuple[int, ...] = (2, 3, 4)) -> Iterator[dict[str, str]]:
    """Yield an endless stream of problems of one split.

    A problem's split is determined by a checksum of its text, whatever the seed, so splits are disjoint.
    """
    rng = random.Random(f"arithmetic {split} {seed}")
    while True:
        row = arithmetic_row(rng, steps)
        if split_of(row["problem"]) == split:
            yield row


def split_of(problem: str) -> str:
    """The split of a problem: of 10 problems, 8 are in `train`, one in `validation` and one in `test`."""
    bucket = zlib.crc32(problem.encode()) % 10
    return SPLITS[max(0, bucket - 7)]


class ArithmeticTask(Task):
    """Synthetic arithmetic word problems, the task of the bundled model. Its splits are disjoint by construction.

    Args:
        train_size: number of training problems.
        test_size: number of held-out problems, and of validation problems.
        seed: seed of the problems.
        steps: the numbers of steps that a problem may have.
        kwargs: see `Task`.

    Raises:
        ValueError: a size or a number of steps is below 1.
    """

    name = "arithmetic"
    splits: frozenset[Split] = frozenset(SPLITS)

    def __init__(
        self,
        train_size: int = 4000,
        test_size: int = 500,
        seed: int = 0,
        steps: Sequence[int] = (2, 3, 4),
        prompt: str = "{problem}\n",
        **kwargs: Any,
    ) -> None:
        super().__init__(prompt=prompt, **kwargs)
        if not steps or min(steps) < 1:
            raise ValueError(f"task.steps must name numbers of at least 1, not {list(steps)}")
        for name, size in (("train_size", train_size), ("test_size", test_size)):
            if size < 1:
                raise ValueError(f"task.{name} must be at least 1, not {size}: the data set would be empty")
        self.sizes = {"train": train_size, "validation": test_size, "test": test_size}
        self.seed, self.steps = seed, tuple(steps)

    def problems(self, split: Split) -> Sequence[Problem]:
        rows = itertools.islice(arithmetic_rows(split, self.seed, self.steps), self.sizes[split])
        return [Problem(i, row["problem"], row["answer"], row["solution"]) for i, row in enumerate(rows)]
