"""What runs say about methods: rates over seeds and problems, differences paired by both, and the paper's claims."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path

from lmix.evaluation.rows import CompletionRow
from lmix.evaluation.scores import by_problem
from lmix.evaluation.statistics import (
    Estimate,
    components,
    crossed_mean,
    detectable_difference,
    holm,
    paired_difference,
)
from lmix.report.bands import by_method
from lmix.report.runs import Run
from lmix.rollout.types import Who

SCORES = {"solved": "solved", "anywhere": "right_anywhere", "format": "format_correct"}
"""Name of a score -> the flag of a row that it counts."""


@dataclass(frozen=True)
class Measured:
    """One of a method's policies at the end of its runs: the mixture under training, or a stream alone."""

    method: str
    who: Who
    step: int
    """The last evaluation that all of its runs have."""
    rows: dict[int, dict[int, list[CompletionRow]]]
    """Seed -> problem -> its samples; its greedy completion where none were drawn."""

    @property
    def samples(self) -> int:
        """Completions of a problem; 0 where they are greedy."""
        row = next(iter(next(iter(self.rows.values())).values()))
        return 0 if row[0].seed is None else len(row)

    @cached_property
    def problems(self) -> list[int]:
        """Those that every seed has."""
        return sorted(set.intersection(*(set(by_id) for by_id in self.rows.values())))

    @cached_property
    def scores(self) -> list[str]:
        """The scores that its completions say; those of before 0.2.0 do not say which are right anywhere."""
        rows = [row for problems in self.rows.values() for drawn in problems.values() for row in drawn]
        return [name for name, field in SCORES.items() if all(getattr(row, field) is not None for row in rows)]

    def flags(self, score: str, seeds: Sequence[int], problems: Sequence[int]) -> list[list[list[float]]]:
        """0 or 1 of each completion `[S, N, k]`."""
        field = SCORES[score]
        return [[[float(bool(getattr(row, field))) for row in self.rows[s][i]] for i in problems] for s in seeds]


@dataclass(frozen=True)
class Difference:
    """How much more one policy scores than another, paired by problem and seed."""

    a: Measured
    b: Measured
    score: str
    estimate: Estimate
    detectable: float | None
    """The smallest true difference that a study of this size and spread finds 4 times in 5; None above 100 points."""


def measured(runs: Sequence[Run]) -> list[Measured]:
    """Every method's policies that its runs have stored completions of, at their last common evaluation."""
    found = []
    for method, group in by_method(runs).items():
        stored = {run.seed or 0: read_held_out(run.folder) for run in group}
        if not all(stored.values()):
            continue
        steps = set.intersection(*({row.step for row in rows} for rows in stored.values()))
        if not steps:
            continue
        step = max(steps)
        for who in ("mixed", "policy"):
            rows = {seed: at_step(kept, step, who) for seed, kept in stored.items()}
            if all(rows.values()):
                found.append(Measured(method, who, step, rows))
    return found


def read_held_out(folder: Path) -> tuple[CompletionRow, ...]:
    """The stored completions of a run's evaluations; none where it stored none.

    Raises:
        ValueError: a line is none.
    """
    known = CompletionRow.__dataclass_fields__
    rows = []
    for path in sorted((folder / "completions").glob("val*.jsonl")):
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                try:
                    content = json.loads(line)
                    # rows of before 0.2.0 do not say how they were drawn: greedily
                    content = {"seed": None, "draw_step": content["step"], **content}
                    rows.append(CompletionRow(**{name: v for name, v in content.items() if name in known}))
                except (ValueError, TypeError, KeyError) as error:
                    raise ValueError(f"{path}: line {number} is no completion of lmix") from error
    return tuple(rows)


def at_step(rows: Sequence[CompletionRow], step: int, who: Who) -> dict[int, list[CompletionRow]]:
    """A policy's completions at one evaluation by problem: the samples, or the greedy ones where none were drawn."""
    mine = [row for row in rows if row.step == step and row.who == who]
    return by_problem([row for row in mine if row.seed is not None] or mine)


def pooled(policy: Measured, score: str) -> Estimate:
    """A score's mean over seeds and problems."""
    return crossed_mean(means(policy.flags(score, sorted(policy.rows), policy.problems)))


def means(flags_SNk: Sequence[Sequence[Sequence[float]]]) -> list[list[float]]:
    return [[sum(draws) / len(draws) for draws in of_seed] for of_seed in flags_SNk]


def difference(a: Measured, b: Measured, score: str = "solved") -> Difference | None:
    """a's score less b's; None where they share no seed, or fewer than two problems.

    A method with one run, such as the SFT reference of all seeds, is compared with every seed of the other one.
    """
    problems = sorted(set(a.problems) & set(b.problems))
    shared = sorted(set(a.rows) & set(b.rows))
    seeds_a = seeds_b = shared
    if 1 in (len(a.rows), len(b.rows)):
        seeds_a, seeds_b = sorted(a.rows), sorted(b.rows)
    if not seeds_a or not seeds_b or len(problems) < 2:
        return None
    flags_a, flags_b = a.flags(score, seeds_a, problems), b.flags(score, seeds_b, problems)
    estimate = paired_difference(means(flags_a), means(flags_b))
    parts = components(flags_a, flags_b)
    samples = min(len(flags_a[0][0]), len(flags_b[0][0]))
    return Difference(a, b, score, estimate, detectable_difference(parts, estimate.problems, samples, estimate.seeds))


def all_differences(policies: Sequence[Measured], score: str = "solved") -> list[Difference]:
    """Each pair of methods, of the mixtures under training."""
    mixed = [policy for policy in policies if policy.who == "mixed"]
    found = [difference(a, b, score) for a, b in combinations(mixed, 2)]
    return [each for each in found if each is not None]


def adjusted(differences: Sequence[Difference]) -> list[float]:
    """Their p, adjusted by Holm for how many there are."""
    return holm([each.estimate.p for each in differences])
