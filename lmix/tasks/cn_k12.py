"""cn_k12: Chinese school exercises in English, multiple choice and values (NuminaMath, Li et al., 2024)."""

from typing import Any

from lmix.tasks.cells import read_cell
from lmix.tasks.dataset import DatasetTask
from lmix.tasks.task import Problem

UNVERIFIABLE = ("", "none", "proof", "notfound")
"""What NuminaMath-1.5 has as the answer of problems that can't be judged by one."""
VALIDITY = ("problem_is_valid", "solution_is_valid")
"""Its columns that say Yes for what its makers could check."""


class CnK12Task(DatasetTask):
    r"""The part cn_k12 of NuminaMath, from the hub (`AI-MO/NuminaMath-1.5`) or local files.

    Answers are letters of a choice or values, both judged by math-verify. Left out are rows of other sources (where
    there is a column `source`), rows that NuminaMath-1.5 calls invalid, answers that can't be judged, and solutions
    with several boxes, which answer several questions.

    Args:
        source: hub id, local folder, or file with the training problems.
        test_split: the hub has no held-out problems, so null takes them out of the training ones.
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
