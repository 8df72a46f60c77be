"""Completions as rows that a person can read."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lmix.data.example import Example
from lmix.rollout.rollout import Rollout
from lmix.tasks.task import Judgement


@dataclass(frozen=True)
class CompletionRow:
    """One completion with what it was worth; a line of the run's jsonl."""

    step: int
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

    @property
    def solved(self) -> bool:
        """Right in the answer template, in a completion that ended by itself: what is rewarded."""
        return self.answer_correct and self.ended

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def completion_rows(
    rollouts: Sequence[Rollout],
    judgements: Sequence[Judgement],
    batch: Sequence[Example],
    step: int,
) -> list[CompletionRow]:
    """Join rollouts (their texts filled in), judgements and problems."""
    return [
        CompletionRow(
            step=step,
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
        )
        for r, j in zip(rollouts, judgements, strict=True)
    ]
