"""Why completions get no verifier reward: a count and an example for each cause."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from lmix.evaluation.rows import CompletionRow, EvaluationRow

Cause = Literal["no template", "not ended", "could not be parsed", "wrong"]
Row = CompletionRow | EvaluationRow

HINTS: dict[Cause, str] = {
    "no template": "the answer is not in the form of task.template",
    "not ended": "cut at max_new_tokens",
    "could not be parsed": "in the template, but the verifier can't read it or takes too long",
    "wrong": "in the template, but different from the gold answer",
}
TAIL = 200
"""Number of characters from the end of a completion that an example shows."""


def cause_of(row: Row) -> Cause | None:
    """Why a completion is not solved; None if it is solved.

    A completion that was cut counts as `not ended` whatever else it lacks, since it might still have reached an answer.
    """
    if row.solved:
        return None
    if not row.ended:
        return "not ended"
    if not row.format_correct:
        return "no template"
    return "wrong" if row.parsed else "could not be parsed"


def count_causes(rows: Sequence[Row]) -> dict[Cause, int]:
    """The number of rows for each cause, with all causes in their order."""
    counts = Counter(map(cause_of, rows))
    return {cause: counts[cause] for cause in get_args(Cause)}


def report(rows: Sequence[Row], counts: Mapping[Cause, float], completions: int) -> list[str]:
    """The lines of a report: how many completions got no reward, why, and the first example of each cause.

    Args:
        rows: the rows to take examples from.
        counts: counts from `count_causes`; summed over ranks, they may cover more completions than `rows`.
        completions: total number of completions that the counts cover, solved or not.
    """
    zeros = int(sum(counts.values()))
    lines = [f"{zeros} of {completions} completions got no verifier reward"]
    examples = {cause_of(row): row for row in reversed(rows)}
    for cause, count in counts.items():
        if not count:
            continue
        lines.append(f"  {cause}: {int(count)} ({HINTS[cause]})")
        if (row := examples.get(cause)) is not None:
            shown = row.completion if len(row.completion) <= TAIL else "..." + row.completion[-TAIL:]
            answer = "none" if row.answer is None else repr(row.answer)
            lines.append(
                f"    problem {row.problem_id}, gold {row.gold!r}, answer {answer}, {row.tokens} tokens: {shown!r}"
            )
    return lines
