"""Procedurally generated tasks of reasoning-gym (Stojanovski et al., arXiv 2505.24760)."""

from collections.abc import Sequence
from functools import cached_property
from importlib import import_module
from typing import Any

from lmix.tasks.task import Problem, Split, Task

GAP = 1_000_000
"""Distance between the seeds of splits. A dataset generates its item i from its seed plus i."""
FULL_SCORE = 0.999
"""The score from which an answer counts as correct. Verifiers also give partial scores."""
TRIES = 4
"""Maximum number of items drawn per problem, for datasets with few different problems."""


class Gold(str):
    """A gold answer with its dataset entry.

    Two questions with the same gold answer may still accept different answers, so equality includes the question.
    """

    entry: dict[str, Any]

    @classmethod
    def of(cls, entry: dict[str, Any]) -> "Gold":
        gold = cls(entry["answer"])
        gold.entry = entry
        return gold

    def __eq__(self, other: object) -> bool:
        same_question = not isinstance(other, Gold) or self.entry["question"] == other.entry["question"]
        return str.__eq__(self, other) is True and same_question

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


class ReasoningGymTask(Task):
    """A dataset of reasoning-gym, judged by the dataset's own verifier. Needs `pip install lmix[reasoning-gym]`.

    Splits are generated from different seeds and share no question. The verifiers run in this process without a time
    limit, so prefer datasets with short answers.

    Args:
        dataset: the name of the dataset in reasoning-gym, such as chain_sum.
        config: the settings of the dataset, such as {min_terms: 2, max_terms: 4}.
        train_size: number of training problems; fewer if the dataset has fewer different ones.
        test_size: number of held-out problems, and of validation problems.
        seed: seed of the problems.
        solution: text of a demonstration before the answer in the template, in which `{answer}` is replaced by the
            answer. These datasets have no worked solutions.
        kwargs: see `Task`.

    Raises:
        ValueError: reasoning-gym is not installed or has no such dataset or setting, or a size is out of range.
    """

    name = "reasoning_gym"
    splits: frozenset[Split] = frozenset({"train", "validation", "test"})

    def __init__(
        self,
        dataset: str,
        config: dict[str, Any] | None = None,
        train_size: int = 4000,
        test_size: int = 500,
        seed: int = 0,
        solution: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name, size in (("train_size", train_size), ("test_size", test_size)):
            if not 1 <= size <= GAP // TRIES:
                raise ValueError(f"task.{name} must lie between 1 and {GAP // TRIES}, not {size}")
        self.name = dataset
        self.dataset, self.config, self.seed, self.solution = dataset, dict(config or {}), seed, solution
        self.sizes: dict[Split, int] = {"test": test_size, "validation": test_size, "train": train_size}
        self._source = self.source(0, 1)  # so that mistakes in the settings are found now
        self._failures = 0

    def source(self, seed: int, size: int) -> Any:
        """Create the dataset with `size` items, from `seed`. Raises ValueError as the class does."""
        try:
            library: Any = import_module("reasoning_gym")
        except ImportError as error:
            raise ValueError(
                f"task ReasoningGymTask needs a package ({error}): pip install 'lmix[reasoning-gym]'"
            ) from error
        try:
            return library.create_dataset(self.dataset, seed=seed, size=size, **self.config)
        except (ValueError, TypeError, AssertionError) as error:
            raise ValueError(
                f"task.dataset {self.dataset!r} with task.config {self.config}: "
                f"{' '.join(str(error).split()) or type(error).__name__}"
            ) from error

    @cached_property
    def drawn(self) -> dict[Split, list[Problem]]:
        """Problems of each split. Held-out problems are drawn first, and no question is used twice."""
        found: dict[Split, list[Problem]] = {}
        seen: set[str] = set()
        for place, (split, size) in enumerate(self.sizes.items()):
            source = self.source((3 * self.seed + place) * GAP, TRIES * size)
            problems: list[Problem] = []
            for i in range(TRIES * size):
                entry = source[i]
                if entry["question"] not in seen and isinstance(entry["answer"], str) and entry["answer"].strip():
                    seen.add(entry["question"])
                    gold = Gold.of(entry)
                    solution = self.solution.replace("{answer}", gold)
                    problems.append(Problem(len(problems), entry["question"], gold, solution))
                if len(problems) == size:
                    break
            found[split] = problems
        return found

    def problems(self, split: Split) -> Sequence[Problem]:
        if not self.drawn[split]:
            raise ValueError(
                f"task.dataset {self.dataset!r} has too few different problems for split {split!r}: lower "
                "task.test_size, or widen task.config"
            )
        return self.drawn[split]

    def verify(self, answers: Sequence[str | None], golds: Sequence[str]) -> list[bool]:
        """Judge by the dataset's verifier, or by exact match if a gold answer is plain text, such as from a file."""
        by_text = super().verify(answers, golds)
        return [
            self.is_right(answer, gold) if isinstance(gold, Gold) else same
            for answer, gold, same in zip(answers, golds, by_text, strict=True)
        ]

    def is_right(self, answer: str | None, gold: Gold) -> bool:
        """Whether the dataset gives the answer the full score. If its verifier fails, the answer counts as wrong."""
        if answer is None:
            return False
        try:
            return float(self._source.score_answer(answer, gold.entry)) >= FULL_SCORE
        except Exception:  # verifiers parse model output, and may raise anything
            self._failures += 1
            return False

    @property
    def failures(self) -> int:
        return self._failures

    def demonstration(self, problem: Problem) -> str:
        return super().demonstration(problem) if problem.solution else self.template.wrap(problem.answer)
