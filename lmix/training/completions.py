"""Completions as rows that a person can read."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from lmix.data.example import Example
from lmix.model.mixed_policy import MixedPolicy
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
    ended: bool
    reward: float
    tokens: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def completion_rows(
    rollouts: Sequence[Rollout],
    texts: Sequence[str],
    judgements: Sequence[Judgement],
    batch: Sequence[Example],
    step: int,
) -> list[CompletionRow]:
    """Join rollouts, their texts, judgements and problems."""
    return [
        CompletionRow(
            step=step,
            problem_id=batch[r.prompt].problem.id,
            sample=r.sample,
            problem=batch[r.prompt].problem.problem,
            completion=text,
            gold=batch[r.prompt].problem.answer,
            answer=j.answer,
            format_correct=j.format_correct,
            answer_correct=j.answer_correct,
            ended=r.ended,
            reward=j.reward,
            tokens=len(r.completion_ids),
        )
        for r, text, j in zip(rollouts, texts, judgements, strict=True)
    ]


def end_tokens(policy: MixedPolicy, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end a completion: the tokenizer's, and those of the model's generation settings."""
    ends: set[Any] = {tokenizer.eos_token_id}  # pyright: ignore[reportUnhashable]
    generation = getattr(policy.backbone, "generation_config", None)
    configured = getattr(generation, "eos_token_id", None)
    ends |= set(configured if isinstance(configured, list | tuple) else [configured])
    return sorted(int(token) for token in ends if token is not None)  # pyright: ignore[reportArgumentType]


def without_end(rollout: Rollout) -> list[int]:
    """The completion's tokens without its end-of-sequence token."""
    return rollout.completion_ids[:-1] if rollout.ended else rollout.completion_ids
