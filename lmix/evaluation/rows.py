"""Judged completions as rows that a person can read, and lines of jsonl."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lmix.files import json_lines, write_lines
from lmix.model.mixture import Mixture, MixtureKind
from lmix.rollout.types import Group, Rollout, Who, flatten

ROWS = "rows.jsonl"


@dataclass(frozen=True)
class EvaluationRow:
    """One completion with what it was worth."""

    who: Who
    mixture: MixtureKind
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
    parsed: bool = True
    """Whether the verifier could read the answer; true where a row is of a version that did not say it."""
    right_anywhere: bool | None = None
    """Right in whatever form it states its answer; null where a row is of a version that did not say it."""
    temperature: float | None = None
    """That it was drawn at; null where it was decoded greedily."""

    @property
    def solved(self) -> bool:
        """Right in the answer template, in a completion that ended by itself: what is rewarded."""
        return self.answer_correct and self.ended


@dataclass(frozen=True)
class CompletionRow:
    """One completion of a run with what it was worth; a line of the run's jsonl."""

    step: int
    """Of training: the step that it was drawn for, counted from 1. Of an evaluation: the updates made before it."""
    problem_id: int
    sample: int
    problem: str
    completion: str
    gold: str
    answer: str | None
    """Parsed from the answer template; null where it is not format-correct."""
    format_correct: bool
    answer_correct: bool
    """Right in the answer template, whether or not the completion ended."""
    ended: bool
    reward: float
    tokens: int
    seed: int | None
    """Of its draw; null where it was decoded greedily."""
    draw_step: int
    """`Draw.step` of its draw: the updates made before, so the checkpoint `step=` of this number drew it."""
    parsed: bool = True
    """Whether the verifier could read the answer; true where a row is of a version that did not say it."""
    right_anywhere: bool | None = None
    """As of an `EvaluationRow`."""
    who: Who = "mixed"
    """What drew it: the mixture under training, or one of its streams alone."""

    @property
    def solved(self) -> bool:
        """As of an `EvaluationRow`."""
        return self.answer_correct and self.ended

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def completion_rows(groups: Sequence[Group]) -> list[CompletionRow]:
    """Rows of judged groups of a training step, or of an evaluation: greedy ones, and those that were held out."""
    rows = []
    for group in groups:
        draw = group.draw
        assert draw is not None
        for rollout in group.rollouts:
            rows.append(
                CompletionRow(
                    step=draw.step if draw.greedy or group.held_out else draw.step + 1,
                    problem=group.problem.problem,
                    reward=rollout.reward,
                    seed=None if draw.greedy else draw.seed,
                    draw_step=draw.step,
                    who=group.who,
                    **shared_fields(rollout),
                )
            )
    return rows


def evaluation_rows(
    groups: Sequence[Group], who: Who, mixtures: Sequence[Mixture], greedy: bool = True
) -> list[EvaluationRow]:
    """Rows of judged groups, whose sample g was drawn from `mixtures[g]`."""
    rows = []
    for rollout in flatten(groups):
        mixture = mixtures[rollout.sample]
        drawn = {"who": who, "mixture": mixture.kind, "alpha": mixture.alpha}
        temperature = None if greedy else mixture.temperature
        rows.append(EvaluationRow(**drawn, temperature=temperature, **shared_fields(rollout)))
    return rows


def shared_fields(rollout: Rollout) -> dict[str, Any]:
    """What both kinds of row say of a judged rollout, by field."""
    problem, judgement = rollout.prompt.problem, rollout.judgement
    assert judgement is not None
    return {
        "problem_id": problem.id,
        "sample": rollout.sample,
        "completion": rollout.text,
        "gold": problem.answer,
        "answer": judgement.answer,
        "format_correct": judgement.format_correct,
        "answer_correct": judgement.answer_correct,
        "ended": rollout.ended,
        "tokens": len(rollout.completion_ids),
        "parsed": judgement.parsed,
        "right_anywhere": judgement.right_anywhere,
    }


def rows_as_single(rows: Iterable[EvaluationRow]) -> list[EvaluationRow]:
    """Rows of one of several mixtures that were drawn together: each is its mixture's only sample."""
    return [replace(row, sample=0) for row in rows]


def count_format(rows: Iterable[EvaluationRow]) -> int:
    return sum(row.format_correct for row in rows)


def count_answered(rows: Iterable[EvaluationRow]) -> int:
    """Right answers, of completions that ended and of those that were cut."""
    return sum(row.answer_correct for row in rows)


def count_anywhere(rows: Iterable[EvaluationRow]) -> int:
    """Right answers in the template or in any other form."""
    return sum(bool(row.right_anywhere) for row in rows)


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
