"""Completions as rows that a person can read."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lmix.data.example import Example
from lmix.rollout.engine import Draw
from lmix.rollout.rollout import Rollout
from lmix.tasks.task import Judgement


@dataclass(frozen=True)
class CompletionRow:
    """One completion with what it was worth; a line of the run's jsonl."""

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
    ended: bool
    reward: float
    tokens: int
    seed: int | None
    """Of its draw; null where it was decoded greedily."""
    draw_step: int
    """`Draw.step` of its draw: the updates made before, so the checkpoint `step=` of this number drew it."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def completion_rows(
    rollouts: Sequence[Rollout],
    judgements: Sequence[Judgement],
    batch: Sequence[Example],
    draw: Draw,
) -> list[CompletionRow]:
    """Join rollouts (their texts filled in), judgements and problems.

    Args:
        draw: what the rollouts were drawn by; sampled ones are a training step's, greedy ones an evaluation's.
    """
    return [
        CompletionRow(
            step=draw.step if draw.greedy else draw.step + 1,
            problem_id=batch[r.prompt].problem.id,
            sample=r.sample,
            problem=batch[r.prompt].problem.problem,
            completion=r.text,
            gold=batch[r.prompt].problem.answer,
            answer=j.answer,
            format_correct=j.format_correct,
            answer_correct=j.answer_correct,
            ended=r.ended,
            reward=j.reward,
            tokens=len(r.completion_ids),
            seed=None if draw.greedy else draw.seed,
            draw_step=draw.step,
        )
        for r, j in zip(rollouts, judgements, strict=True)
    ]
