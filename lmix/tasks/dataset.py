"""A task whose problems are rows of a data set: on the hub, in a folder with the hub's layout, or in a file."""

import logging
from collections.abc import Sequence
from typing import Any

from lmix.tasks.cells import cell_at, cell_messages, cell_text, read_cell, same_value
from lmix.tasks.rows import is_file, load_rows
from lmix.tasks.task import Problem, Split, Task
from lmix.verifier.pool import Verifier
from lmix.verifier.templates import answer_template

log = logging.getLogger(__name__)


def answer_text(value: Any) -> str:
    """A cell's answer, without a surrounding box or `####`.

    Raises:
        ValueError: the cell can't be read as text, or contains a whole solution instead of only the answer.
    """
    text = cell_text(value)
    for template in map(answer_template, ("hash", "boxed")):
        if (answer := template.extract(text)) is None:
            continue
        if text.strip(" $.\n") == template.wrap(answer):
            return answer
        raise ValueError(
            f"{text if len(text) <= 80 else '...' + text[-77:]!r} is a whole solution, not an answer: set "
            f"task.solution_column to this column, task.answer_column to null and task.template to {template.name}"
        )
    return text


class DatasetTask(Task):
    """Problems and answers from columns of a data set. Answers are judged by math-verify.

    Args:
        source: hub id, local folder, or file (.json, .jsonl, .csv, .tsv, each also with .gz, or .parquet) with the
            training problems.
        test_source: the same for held-out problems. null uses the split `test_split` of `source`; if `source` is a
            file, held-out problems are taken out of its problems.
        config_name: configuration of a hub data set.
        train_split: split of a hub data set or folder to train on.
        test_split: split with the held-out problems; null takes them out of the training problems.
        problem_column: column with the problem's text, or with chat messages of which the last is the user's. In all
            column settings, a dot selects a field inside a column: `extra_info.question`.
        answer_column: column with the answer (`reward_model.ground_truth`). null takes the answer from the solution: by
            the task's template (`hash` reads GSM8K's `####`), or else from the last box.
        where: values that other columns must have, such as `{source: cn_k12}`; a list allows several values. Text and
            numbers are compared as text: 5 matches "5".
        solution_column: column with a worked solution; null if there is none.
        deadline: time limit for judging one answer, in seconds.
        verifier_workers: number of verifier processes.
        kwargs: prompt and template, see `Task`.

    Raises:
        ValueError: `answer_column` and `solution_column` are both null.
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
            raise ValueError("task.answer_column and task.solution_column are both null: set the one with the answers")
        if self.name == DatasetTask.name:
            self.name = source.rstrip("/").rpartition("/")[2]
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
        fields = ("problem_column", "answer_column", "solution_column")
        wanted = [(getattr(self, field), field) for field in fields] + [(column, "where") for column in self.where]
        for column, field in wanted:
            if column is not None and not {column, column.split(".")[0]} & set(columns):
                raise ValueError(
                    f"column {column!r} is not in {source!r}, which has {', '.join(map(repr, columns))}: "
                    f"set task.{field}"
                )
        problems, unjudgeable = [], []
        for number, row in enumerate(rows):
            try:
                kept = self.keep(row)
            except ValueError as error:
                raise ValueError(f"row {number} of {source!r}, task.where: {error}") from error
            if kept and (problem := self.to_problem(number, row, source)):
                problems.append(problem)
            elif kept:
                unjudgeable.append(number)
        left_out = (
            f"{len(unjudgeable)} of {len(unjudgeable) + len(problems)} rows have no verifiable answer, "
            f"such as row {unjudgeable[0] if unjudgeable else None}"
        )
        if problems and unjudgeable:
            log.warning("%s: %s; left out", source, left_out)
        if not problems:
            reason = "check the file and the task's filters"
            if unjudgeable:
                reason = f"{left_out}; with task.answer_column null, task.template or a box must mark it"
            raise ValueError(f"{source!r} contains no problems for split {split!r}: {reason}")
        return problems

    def keep(self, row: dict[str, Any]) -> bool:
        """Whether a row is used."""
        return all(any(same_value(cell_at(row, c), v) for v in values) for c, values in self.where.items())

    def to_problem(self, number: int, row: dict[str, Any], source: str) -> Problem | None:
        """Turn a row into a problem, or into None if its answer can't be judged, such as a MATH solution without a box.

        Raises:
            ValueError: a cell is empty or can't be read as text; the message names file, row, column and value.
        """
        messages = read_cell(number, row, self.problem_column, cell_messages, source=source)
        problem = messages[-1][1] if messages else read_cell(number, row, self.problem_column, source=source)
        history = tuple(messages[:-1]) if messages else ()
        if self.system is not None and any(role == "system" for role, _ in history):
            raise ValueError(
                f"row {number} of {source!r}, column {self.problem_column!r} already has a system message: "
                f"set task.system to null, not {self.system!r}"
            )
        solution = read_cell(number, row, self.solution_column, source=source) if self.solution_column else ""
        if self.answer_column is not None:
            answer = read_cell(number, row, self.answer_column, answer_text, source=source)
        elif (answer := self.template.extract(solution) or answer_template("boxed").extract(solution)) is None:
            return None
        for column, value in ((self.problem_column, problem), (self.answer_column, answer)):
            if not value.strip():
                raise ValueError(
                    f"row {number} of {source!r} (the first is row 0) is empty in column {column!r}: "
                    "fill it or remove the row"
                )
        return Problem(number, problem, answer, solution, history)

    def verify(self, answers: Sequence[str | None], golds: Sequence[str]) -> list[bool]:
        if self._verifier is None:
            self._verifier = Verifier(self.verifier_workers, self.deadline)
        verdicts = self._verifier.verify(answers, golds)
        pairs = zip(answers, golds, verdicts, strict=True)
        self.unparsed = {(a, gold) for a, gold, verdict in pairs if verdict.outcome not in ("right", "wrong")}
        return [verdict.correct for verdict in verdicts]

    @property
    def failures(self) -> int:
        return 0 if self._verifier is None else self._verifier.counts["timeout"] + self._verifier.counts["crash"]

    def close(self) -> None:
        if self._verifier is not None:
            self._verifier.close()
            self._verifier = None
