"""Word problems in several steps of arithmetic, made on the spot: the task of the embedded default.

A problem tells of one person's things in two to four steps; its solution writes one equation a step. The text uses a
small set of words, so that a model of 0.8M parameters can read and solve it. Everything here is synthetic.
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

    Returns:
        A row with `problem`, `solution` (one equation a step, no closing sentence) and `answer` (a whole number).
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
    """Yield problems of one split without end.

    A problem belongs to the split that a checksum of its text says, whatever the seed, so splits never share one.
    """
    rng = random.Random(f"arithmetic {split} {seed}")
    while True:
        row = arithmetic_row(rng, steps)
        if split_of(row["problem"]) == split:
            yield row


def split_of(problem: str) -> str:
    """The split a problem belongs to: 8 in 10 are `train`, one each `validation` and `test`."""
    bucket = zlib.crc32(problem.encode()) % 10
    return SPLITS[max(0, bucket - 7)]


class ArithmeticTask(Task):
    """The task of the bundled model. Its splits are disjoint by construction, and have the sizes asked for.

    Args:
        train_size: training problems.
        test_size: held-out problems, and as many for validation.
        seed: which problems.
        steps: how many steps a problem may have.
        kwargs: see `Task`.
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
