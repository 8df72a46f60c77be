"""Scores of judged completions per problem, and their means with intervals clustered by problem."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from lmix.evaluation.rows import CompletionRow, EvaluationRow
from lmix.evaluation.statistics import maj_at_k, mean_interval, pass_at_k
from lmix.verifier.normalise import normalise_answer

R = TypeVar("R", CompletionRow, EvaluationRow)


def by_problem(rows: Iterable[R]) -> dict[int, list[R]]:
    """Group rows by problem, keeping their order."""
    found: dict[int, list[R]] = {}
    for row in rows:
        found.setdefault(row.problem_id, []).append(row)
    return found


def avg(rows: Sequence[R]) -> float:
    """avg@k of a problem: the share of its completions that are solved."""
    return sum(row.solved for row in rows) / len(rows)


def passed(rows: Sequence[R], k: int) -> float:
    """pass@k of a problem."""
    return pass_at_k(len(rows), sum(row.solved for row in rows), k)


def voted(rows: Sequence[R], k: int) -> float:
    """maj@k of a problem. Votes are the normalised answers in the template, of completions that ended."""
    answers = [normalise_answer(row.answer) if row.ended and row.answer is not None else None for row in rows]
    return maj_at_k(answers, [row.solved for row in rows], k)


def anywhere(rows: Sequence[R]) -> float:
    """Share of a problem's completions with the correct answer in any recognised form."""
    return sum(bool(row.right_anywhere) for row in rows) / len(rows)


def formatted(rows: Sequence[R]) -> float:
    """Share of a problem's completions that use the template."""
    return sum(row.format_correct for row in rows) / len(rows)


def rate(rows: Iterable[R], score: Callable[[Sequence[R]], float]) -> dict[str, Any]:
    """The mean of a score over problems, with its 95 % interval clustered by problem (`mean_interval`)."""
    problems = list(by_problem(rows).values())
    values = [score(of_problem) for of_problem in problems]
    interval = mean_interval(values, max(map(len, problems), default=1))
    return {"rate": sum(values) / len(values), "interval": list(interval)}


def sampled_summary(rows: Sequence[R], samples: int) -> dict[str, Any]:
    """avg@k, and pass@k and maj@k for k = 1, 2, 4, ... and `samples`, of `samples` completions per problem."""
    sizes = sorted({2**i for i in range(samples.bit_length())} | {samples})
    return {
        "samples": samples,
        "avg_at_k": rate(rows, avg),
        "right_anywhere": rate(rows, anywhere),
        "format": rate(rows, formatted),
        "pass_at_k": {str(k): rate(rows, lambda problem, k=k: passed(problem, k)) for k in sizes},
        "maj_at_k": {str(k): rate(rows, lambda problem, k=k: voted(problem, k)) for k in sizes},
    }
