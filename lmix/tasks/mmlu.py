"""MMLU (Hendrycks et al., arXiv 2009.03300): multiple choice in 57 subjects, answered by a letter."""

from collections.abc import Sequence
from typing import Any

from lmix.tasks.cells import cell_text, read_cell
from lmix.tasks.dataset import DatasetTask
from lmix.tasks.task import Problem, TemplateName

LETTERS = "ABCDEFGHIJ"


class MMLUTask(DatasetTask):
    """MMLU, from the hub (`cais/mmlu`) or from local files with the columns question, choices, answer and subject.

    There are no worked solutions, so a demonstration for SFT is only the answer in its template.

    Args:
        source: hub id, local folder, or file with the training problems.
        config_name: configuration of the hub data set.
        train_split: split to train on. The hub's auxiliary_train has no subjects; to select subjects, use `validation`
            or `dev`.
        subjects: subjects to keep, such as [abstract_algebra]; null keeps all.
        problem_column: column with the question.
        answer_column: column with the index of the correct choice, from 0, or its letter.
        template: the answer template, in which the answer is a letter.
        kwargs: see `DatasetTask`.

    Raises:
        ValueError: `subjects` is an empty list.
    """

    name = "mmlu"

    def __init__(
        self,
        source: str = "cais/mmlu",
        config_name: str | None = "all",
        train_split: str = "auxiliary_train",
        subjects: Sequence[str] | None = None,
        problem_column: str = "question",
        answer_column: str = "answer",
        template: TemplateName = "letter",
        **kwargs: Any,
    ) -> None:
        if subjects is not None and not subjects:
            raise ValueError("task.subjects is empty: name some, or null for all")
        where = None if subjects is None else {"subject": list(subjects)}
        super().__init__(
            source,
            config_name=config_name,
            train_split=train_split,
            problem_column=problem_column,
            answer_column=answer_column,
            where=where,
            template=template,
            **kwargs,
        )

    def to_problem(self, number: int, row: dict[str, Any], source: str) -> Problem | None:
        """The question with lettered choices, and a letter as the answer. Raises ValueError if a cell is malformed."""
        assert self.answer_column is not None
        question = read_cell(number, row, self.problem_column, source=source)
        choices, answer = (
            row.get("choices"),
            read_cell(number, row, self.answer_column, lambda cell: cell, source=source),
        )
        if isinstance(answer, str) and len(answer) == 1 and answer in LETTERS:
            answer = LETTERS.index(answer)
        if not isinstance(choices, list) or type(answer) is not int or not 0 <= answer < len(choices) <= len(LETTERS):
            raise ValueError(
                f"row {number} of {source!r}: choices must be a list of at most {len(LETTERS)}, and answer the "
                f"index or letter of one of them, not {choices!r} and {answer!r}"
            )
        texts = read_cell(number, row, "choices", lambda cells: [cell_text(cell) for cell in cells], source=source)
        if not question.strip() or not all(text.strip() for text in texts):
            raise ValueError(
                f"row {number} of {source!r} (the first is row 0) has an empty question or choice: "
                "fill it or remove the row"
            )
        lines = [f"{letter}. {text}" for letter, text in zip(LETTERS, texts, strict=False)]
        return Problem(number, "\n".join([question, *lines]), LETTERS[answer])

    def demonstration(self, problem: Problem) -> str:
        return self.template.wrap(problem.answer)
