"""A task whose problems are rows of a data set: on the hub, in a folder of the hub's layout, or in a file."""

import logging
from collections.abc import Sequence
from typing import Any

from lmix.tasks.rows import is_file, load_rows
from lmix.tasks.task import Problem, Split, Task
from lmix.tasks.templates import answer_template
from lmix.tasks.verifier import Verifier

log = logging.getLogger(__name__)


class DatasetTask(Task):
    """Problems and answers from columns of a data set, answers judged by math-verify.

    Args:
        source: hub id, local folder, or file (.json, .jsonl, .parquet, .csv) with the training problems.
        test_source: the same for held-out problems. Null means `source` with its split `test_split`, or, where `source`
            is a file, some of its problems.
        config_name: which configuration of a hub data set.
        train_split: which split of a hub data set or folder is for training.
        test_split: which one holds the held-out problems; null takes them out of the training ones.
        problem_column: column with the problem's text.
        answer_column: column with the answer; null takes it from the last box in the solution.
        where: values of other columns that rows must have, such as `{source: cn_k12}`; a list allows any of several.
        solution_column: column with a worked solution; null where there is none.
        deadline: seconds that one answer may take to judge.
        verifier_workers: processes that judge.
        kwargs: prompt and template, see `Task`.
    """

    name = "dataset"

    def __init__(
        self,
        source: str,
        test_source: str | None = None,
        config_name: str | None = None,
        train_split: str = "train",
        test_split: str | None = "test",
        problem_column: str = "problem",
        answer_column: str | None = "answer",
        solution_column: str | None = None,
        where: dict[str, Any] | None = None,
        deadline: float = 5.0,
        verifier_workers: int = 2,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if answer_column is None and solution_column is None:
            raise ValueError("task.answer_column and task.solution_column are both null: name the one with the answers")
        self.source, self.test_source, self.config_name = source, test_source or source, config_name
        self.split_names = {"train": train_split, "test": test_split or train_split}
        if test_source is None and (is_file(source) or test_split is None):
            self.splits = frozenset({"train"})
        self.where = {column: v if isinstance(v, list) else [v] for column, v in (where or {}).items()}
        self.problem_column, self.answer_column = problem_column, answer_column
        self.solution_column = solution_column
        self.deadline, self.verifier_workers = deadline, verifier_workers
        self._verifier: Verifier | None = None

    def problems(self, split: Split) -> Sequence[Problem]:
        source = self.test_source if split == "test" else self.source
        columns, rows = load_rows(source, self.split_names[split], self.config_name)
        for column in (self.problem_column, self.answer_column, self.solution_column, *self.where):
            if column is not None and column not in columns:
                raise ValueError(f"column {column!r} is not in {source!r}, which has {', '.join(columns)}")
        problems = []
        for number, row in enumerate(rows):
            if self.keep(row) and (problem := self.to_problem(number, row, source)):
                problems.append(problem)
        if not problems:
            raise ValueError(f"{source!r} holds no problem for split {split!r}: check the file and the task's filters")
        return problems

    def keep(self, row: dict[str, Any]) -> bool:
        """Whether a row is used."""
        return all(row[column] in values for column, values in self.where.items())

    def to_problem(self, number: int, row: dict[str, Any], source: str) -> Problem | None:
        """Turn a row into a problem, or into None where it is of no use, such as a solution without a box in MATH.

        Raises:
            ValueError: a column is empty.
        """
        problem = row[self.problem_column]
        solution = str(row[self.solution_column] or "") if self.solution_column else ""
        if self.answer_column is not None:
            answer = row[self.answer_column]
        elif (answer := answer_template("boxed").extract(solution)) is None:
            log.warning("row %d of %s has no boxed answer in its solution: left out", number, source)
            return None
        for column, value in ((self.problem_column, problem), (self.answer_column, answer)):
            if value is None or not str(value).strip():
                raise ValueError(f"row {number} of {source!r} has nothing in column {column!r}: fill or remove it")
        return Problem(number, str(problem), str(answer), solution)

    def verify(self, answers: Sequence[str | None], golds: Sequence[str]) -> list[bool]:
        if self._verifier is None:
            self._verifier = Verifier(self.verifier_workers, self.deadline)
        return [verdict.correct for verdict in self._verifier.verify(answers, golds)]

    @property
    def failures(self) -> int:
        return 0 if self._verifier is None else self._verifier.counts["timeout"] + self._verifier.counts["crash"]

    def close(self) -> None:
        if self._verifier is not None:
            self._verifier.close()
            self._verifier = None
