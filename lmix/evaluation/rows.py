"""Judged completions as rows of jsonl files."""

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
    """One judged completion of an evaluation."""

    who: Who
    mixture: MixtureKind
    alpha: float
    problem_id: int
    sample: int
    completion: str
    answer: str | None
    """Parsed from the answer template; null if not format-correct."""
    gold: str
    format_correct: bool
    answer_correct: bool
    """Whether the answer in the template is correct, whether or not the completion ended."""
    ended: bool
    tokens: int
    parsed: bool = True
    """Whether the verifier could parse the answer; true in rows of older versions, which did not record it."""
    right_anywhere: bool | None = None
    """Whether the answer is correct in any recognised form; null in rows of older versions, which did not record it."""
    temperature: float | None = None
    """Sampling temperature; null for greedy decoding."""

    @property
    def solved(self) -> bool:
        """Whether the completion ended by itself with the correct answer in the template, which `verifier` rewards."""
        return self.answer_correct and self.ended


@dataclass(frozen=True)
class CompletionRow:
    """One judged completion of a run; a line of the run's jsonl."""

    step: int
    """In training, the step of the completion, from 1. In an evaluation, the number of steps done before it."""
    problem_id: int
    sample: int
    problem: str
    completion: str
    gold: str
    answer: str | None
    """Parsed from the answer template; null if not format-correct."""
    format_correct: bool
    answer_correct: bool
    """Whether the answer in the template is correct, whether or not the completion ended."""
    ended: bool
    reward: float
    tokens: int
    seed: int | None
    """Seed of the sampling; null for greedy decoding."""
    draw_step: int
    """`Draw.step`: the number of steps done before, so the checkpoint `step=` of this number sampled the completion."""
    parsed: bool = True
    """Whether the verifier could parse the answer; true in rows of older versions, which did not record it."""
    right_anywhere: bool | None = None
    """As in `EvaluationRow`."""
    who: Who = "mixed"
    """The policy that was sampled: the mixture under training, or one of its streams alone."""

    @property
    def solved(self) -> bool:
        """As in `EvaluationRow`."""
        return self.answer_correct and self.ended

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def completion_rows(groups: Sequence[Group]) -> list[CompletionRow]:
    """Rows of judged groups from a training step or an evaluation. Greedy and held-out groups are of evaluations."""
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
    """Rows of judged groups, in which sample g comes from `mixtures[g]`."""
    rows = []
    for rollout in flatten(groups):
        mixture = mixtures[rollout.sample]
        drawn = {"who": who, "mixture": mixture.kind, "alpha": mixture.alpha}
        temperature = None if greedy else mixture.temperature
        rows.append(EvaluationRow(**drawn, temperature=temperature, **shared_fields(rollout)))
    return rows


def shared_fields(rollout: Rollout) -> dict[str, Any]:
    """The fields of a judged rollout that both kinds of row have, by name."""
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
    """Renumber rows of one of several mixtures sampled together: each row is its mixture's only sample."""
    return [replace(row, sample=0) for row in rows]


def count_format(rows: Iterable[EvaluationRow]) -> int:
    return sum(row.format_correct for row in rows)


def count_answered(rows: Iterable[EvaluationRow]) -> int:
    """Number of correct answers in the template, whether the completion ended or was cut."""
    return sum(row.answer_correct for row in rows)


def count_anywhere(rows: Iterable[EvaluationRow]) -> int:
    """Number of correct answers, in the template or in any other recognised form."""
    return sum(bool(row.right_anywhere) for row in rows)


def count_solved(rows: Iterable[EvaluationRow]) -> int:
    """Number of correct answers in the template of completions that ended."""
    return sum(row.solved for row in rows)


def write_rows(folder: Path, rows: Iterable[EvaluationRow]) -> None:
    """Write rows.jsonl, atomically."""
    write_lines(folder / ROWS, json_lines(map(asdict, rows)))


def read_rows(folder: Path) -> list[EvaluationRow]:
    """Read rows.jsonl; no rows if the file does not exist. Raises ValueError if a line is not a row."""
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
