"""Why completions earn no verifier reward: counts of each cause, and an example."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from lmix.evaluation.rows import CompletionRow, EvaluationRow

Cause = Literal["no template", "not ended", "could not be parsed", "wrong"]
Row = CompletionRow | EvaluationRow

HINTS: dict[Cause, str] = {
    "no template": "the answer is not in the form of task.template",
    "not ended": "cut at max_new_tokens",
    "could not be parsed": "in the template, but the verifier can't read it, or took too long",
    "wrong": "in the template, and another value than the gold answer",
}
TAIL = 200
"""Characters of a completion's end that an example shows."""


def cause_of(row: Row) -> Cause | None:
    """Why a completion is not solved, None where it is. One that has not ended is that, whatever else it lacks: it
    might still have come to an answer."""
    if row.solved:
        return None
    if not row.ended:
        return "not ended"
    if not row.format_correct:
        return "no template"
    return "wrong" if row.parsed else "could not be parsed"


def count_causes(rows: Sequence[Row]) -> dict[Cause, int]:
    """How many rows each cause has, of all causes in their order."""
    counts = Counter(map(cause_of, rows))
    return {cause: counts[cause] for cause in get_args(Cause)}


def report(rows: Sequence[Row], counts: Mapping[Cause, float], completions: int) -> list[str]:
    """The lines of a report: how many completions earned nothing, why, and the first example of each cause.

    Args:
        rows: which examples are taken from.
        counts: of all causes, as `count_causes` gives them; over several ranks they may be of more than `rows`.
        completions: solved or not, what the counts are of.
    """
    zeros = int(sum(counts.values()))
    lines = [f"{zeros} of {completions} completions earned no verifier reward"]
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
