"""cn_k12: Chinese K-12 mathematics exercises in English (NuminaMath, Li et al., 2024)."""

from typing import Any

from lmix.tasks.cells import read_cell
from lmix.tasks.dataset import DatasetTask
from lmix.tasks.task import Problem

UNVERIFIABLE = ("", "none", "proof", "notfound")
"""Values of NuminaMath-1.5's answer column for problems without an answer that can be verified."""
VALIDITY = ("problem_is_valid", "solution_is_valid")
"""Columns of NuminaMath-1.5 that are Yes for rows that passed its authors' checks."""


class CnK12Task(DatasetTask):
    r"""The cn_k12 part of NuminaMath, from the hub (`AI-MO/NuminaMath-1.5`) or local files.

    Answers are choice letters or values; both are judged by math-verify. Rows are left out if they have another
    `source` (where that column exists), are marked as invalid by NuminaMath-1.5, have an answer that can't be judged,
    or have several boxes in the solution, which answer several questions.

    Args:
        source: hub id, local folder, or file with the training problems.
        test_split: split with the held-out problems. The hub data set has none, so null takes them out of the training
            problems.
        solution_column: column with a worked solution.
        kwargs: see `DatasetTask`.
    """

    name = "cn_k12"

    def __init__(
        self,
        source: str = "AI-MO/NuminaMath-1.5",
        test_split: str | None = None,
        solution_column: str | None = "solution",
        **kwargs: Any,
    ) -> None:
        super().__init__(source, test_split=test_split, solution_column=solution_column, **kwargs)

    def keep(self, row: dict[str, Any]) -> bool:
        valid = all(str(row.get(column, "Yes")) == "Yes" for column in VALIDITY)
        return super().keep(row) and valid and row.get("source", self.name) == self.name

    def to_problem(self, number: int, row: dict[str, Any], source: str) -> Problem | None:
        solution, answer = (
            read_cell(number, row, column, source=source) if column else None
            for column in (self.solution_column, self.answer_column)
        )
        if (solution or "").count("\\boxed") > 1 or (answer is not None and answer.strip().lower() in UNVERIFIABLE):
            return None
        return super().to_problem(number, row, source)
