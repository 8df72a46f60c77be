"""Feedback in the prompt of SDPO's teacher: a correct completion of the same group, or the verifier's verdict."""

from dataclasses import dataclass, replace
from typing import Literal

from transformers import PreTrainedTokenizerBase

from lmix.rollout.types import Group, Prompt, Rollout
from lmix.tasks.task import Task

FeedbackKind = Literal["both", "solution", "verdict"]


@dataclass(frozen=True)
class FeedbackConfig:
    """Feedback on a completion that the teacher reads (section 3 of arXiv 2601.20802)."""

    kind: FeedbackKind = "both"
    """solution: a correct completion of the same group, other than the one being scored. verdict: the verifier's
    comment on a wrong completion. both: the solution if there is one, and the verdict."""
    solution: str = "\n\nA correct solution:\n{solution}"
    """Text added to the problem for a solution; `{solution}` is filled in."""
    verdict: str = "\n\nAn earlier attempt: {verdict}"
    """Text added for a verdict; `{verdict}` is filled in."""
    closing: str = "\n\nSolve the problem."
    """Text at the end of the feedback."""

    def __post_init__(self) -> None:
        for name in ("solution", "verdict"):
            if f"{{{name}}}" not in getattr(self, name):
                raise ValueError(f"feedback.{name} must contain {{{name}}}, not {getattr(self, name)!r}")


def feedback_texts(group: Group, task: Task, config: FeedbackConfig) -> list[str | None]:
    """The feedback after the problem in the teacher's prompt, for each of a group's judged completions.

    None where there is no feedback: for the only correct completion of a group (and, under `verdict`, for every correct
    one), and under `solution` for a wrong completion in a group without a correct one.
    """
    right = [rollout for rollout in group.rollouts if rollout.solved]

    def text(rollout: Rollout) -> str | None:
        parts = []
        others = [other for other in right if other is not rollout]
        if others and config.kind != "verdict":
            parts.append(config.solution.replace("{solution}", others[0].text))
        if not rollout.solved and config.kind != "solution":
            parts.append(config.verdict.replace("{verdict}", verdict(rollout, task)))
        return "".join([*parts, config.closing]) if parts else None

    return [text(rollout) for rollout in group.rollouts]


def verdict(rollout: Rollout, task: Task) -> str:
    """The verifier's comment on a completion that is not correct. It does not reveal the correct answer."""
    judgement = rollout.judgement
    assert judgement is not None
    if not judgement.format_correct:
        return f"it gave no answer in the form that is asked for. {task.instruction}"
    if not judgement.answer_correct:
        return f"its answer {judgement.answer} is wrong."
    return f"it was cut after {len(rollout.completion_ids)} tokens, before it had ended."


def contexts(
    group: Group, task: Task, tokenizer: PreTrainedTokenizerBase, config: FeedbackConfig, places: int
) -> list[Rollout | None]:
    """Each completion after the prompt with its feedback.

    None where there is no feedback, or where prompt and completion together have more than `places` tokens.
    """
    found: list[Rollout | None] = []
    for rollout, text in zip(group.rollouts, feedback_texts(group, task, config), strict=True):
        if text is None:
            found.append(None)
            continue
        problem = replace(group.problem, problem=group.problem.problem + text)
        context = replace(rollout, prompt=Prompt(problem, task.prompt_ids(problem, tokenizer)), frozen_hidden=None)
        found.append(context if len(context) <= places else None)
    return found
