"""Judged completions as lines of rows.jsonl."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from lmix.files import json_lines, write_lines
from lmix.model.mixed_policy import Mixture

Who = Literal["mixed", "policy", "reference"]
ROWS = "rows.jsonl"


@dataclass(frozen=True)
class EvaluationRow:
    """One completion with what it was worth."""

    who: Who
    mixture: Mixture
    alpha: float
    problem_id: int
    sample: int
    completion: str
    answer: str | None
    """Parsed from the answer template; null where it is not format-correct."""
    gold: str
    format_correct: bool
    answer_correct: bool
    """Right in the answer template, whether or not the completion ended."""
    ended: bool
    tokens: int

    @property
    def solved(self) -> bool:
        """Right in the answer template, in a completion that ended by itself: what is rewarded."""
        return self.answer_correct and self.ended


def count_format(rows: Iterable[EvaluationRow]) -> int:
    return sum(row.format_correct for row in rows)


def count_answered(rows: Iterable[EvaluationRow]) -> int:
    """Right answers, of completions that ended and of those that were cut."""
    return sum(row.answer_correct for row in rows)


def count_solved(rows: Iterable[EvaluationRow]) -> int:
    """Right answers of completions that ended."""
    return sum(row.solved for row in rows)


def write_rows(folder: Path, rows: Iterable[EvaluationRow]) -> None:
    """Write rows.jsonl. It is there whole or not at all."""
    write_lines(folder / ROWS, json_lines(map(asdict, rows)))


def read_rows(folder: Path) -> list[EvaluationRow]:
    """Read rows.jsonl; no rows where there is none. Raises ValueError where a line is no row."""
    if not (folder / ROWS).is_file():
        return []
    rows = []
    with (folder / ROWS).open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                rows.append(EvaluationRow(**json.loads(line)))
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"out {str(folder)!r}: line {number} of {ROWS} is damaged: remove the folder"
                ) from error
    return rows
