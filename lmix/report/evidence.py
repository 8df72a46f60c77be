"""Evidence from runs: rates of methods over seeds and problems, and differences paired by seed and problem."""

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
from lmix.files import open_text
from lmix.report.bands import by_method, evaluations, family
from lmix.report.methods import model_arguments
from lmix.report.runs import Run
from lmix.rollout.types import Who

SCORES = {"solved": "solved", "anywhere": "right_anywhere", "format": "format_correct"}
"""Name of a score -> the boolean field of a row that it counts."""


@dataclass(frozen=True)
class Measured:
    """One policy of a method at the end of its runs: the mixture under training, or a stream alone."""

    method: str
    who: Who
    steps: tuple[int, ...]
    """The step of the last evaluation that the method's runs share, in each of them."""
    rows: dict[int, dict[int, list[CompletionRow]]]
    """Seed -> problem -> its samples, or its greedy completion if there are no samples."""
    adapters: frozenset[tuple[str | None, str | None]]
    """Paths of the reference and of the policy's start, of every run."""

    @property
    def samples(self) -> int:
        """Number of samples per problem; 0 for greedy decoding."""
        row = next(iter(next(iter(self.rows.values())).values()))
        return 0 if row[0].seed is None else len(row)

    @cached_property
    def problems(self) -> list[int]:
        """The problems that every seed has."""
        return sorted(set.intersection(*(set(by_id) for by_id in self.rows.values())))

    @cached_property
    def scores(self) -> list[str]:
        """The scores that its rows have. Rows from before 0.2.0 do not record `right_anywhere`."""
        rows = [row for problems in self.rows.values() for drawn in problems.values() for row in drawn]
        return [name for name, field in SCORES.items() if all(getattr(row, field) is not None for row in rows)]

    def flags(self, score: str, seeds: Sequence[int], problems: Sequence[int]) -> list[list[list[float]]]:
        """0 or 1 for each completion, `[S, N, k]`."""
        field = SCORES[score]
        return [[[float(bool(getattr(row, field))) for row in self.rows[s][i]] for i in problems] for s in seeds]


@dataclass(frozen=True)
class Difference:
    """The difference of two policies' scores, a minus b, paired by problem and seed."""

    a: Measured
    b: Measured
    score: str
    estimate: Estimate
    detectable: float | None
    """The smallest true difference that a study of this size and variance detects with probability 0.8; None if even
    100 points would not be detected."""


def measured(runs: Sequence[Run]) -> list[Measured]:
    """All policies whose completions the runs have stored, at the last evaluation that a method's runs share.

    Policies with fewer than two problems are left out, because their rates have no interval.
    """
    policies = []
    for method, group in by_method(runs).items():
        stored = [read_held_out(run.folder) for run in group]
        for who in ("mixed", "policy"):
            policy = measure(method, who, group, stored)
            if policy is not None and len(policy.problems) > 1:
                policies.append(policy)
    return policies


def measure(method: str, who: Who, runs: Sequence[Run], stored: Sequence[Sequence[CompletionRow]]) -> Measured | None:
    """One policy of a method's runs at the last evaluation that they share; None if not all of them stored it.

    Args:
        method: the method's name.
        who: the policy.
        runs: the method's runs.
        stored: the completions that each of them stored, see `read_held_out`.
    """
    shared = evaluations(runs)
    if not shared:
        return None
    rows = {
        run.seed or 0: at_step(of_run, step, who) for run, of_run, step in zip(runs, stored, shared[-1], strict=True)
    }
    adapters = [model_arguments(run.config)["adapters"] for run in runs]
    paths = frozenset((of_run.get("reference"), of_run.get("policy")) for of_run in adapters)
    return Measured(method, who, shared[-1], rows, paths) if all(rows.values()) else None


def read_held_out(folder: Path) -> tuple[CompletionRow, ...]:
    """Read the stored completions of a run's evaluations (.jsonl, or compressed .jsonl.gz); empty if it stored none.

    Raises:
        ValueError: a line is not a completion.
    """
    known = CompletionRow.__dataclass_fields__
    rows = []
    paths = (folder / "completions").glob("val*")
    for path in sorted(path for path in paths if path.name.endswith((".jsonl", ".jsonl.gz"))):
        with open_text(path) as file:
            for number, line in enumerate(file, start=1):
                try:
                    content = json.loads(line)
                    # rows from before 0.2.0 lack these fields; they were decoded greedily
                    content = {"seed": None, "draw_step": content["step"], **content}
                    rows.append(CompletionRow(**{name: v for name, v in content.items() if name in known}))
                except (ValueError, TypeError, KeyError) as error:
                    raise ValueError(f"{path}: line {number} is not a completion row written by lmix") from error
    return tuple(rows)


def at_step(rows: Sequence[CompletionRow], step: int, who: Who) -> dict[int, list[CompletionRow]]:
    """A policy's completions at one evaluation, by problem: its samples, or, if there are none, greedy ones."""
    mine = [row for row in rows if row.step == step and row.who == who]
    return by_problem([row for row in mine if row.seed is not None] or mine)


def pooled(policy: Measured, score: str) -> Estimate:
    """The mean of a score over seeds and problems, with its interval."""
    return crossed_mean(means(policy.flags(score, sorted(policy.rows), policy.problems)))


def means(flags_SNk: Sequence[Sequence[Sequence[float]]]) -> list[list[float]]:
    return [[sum(draws) / len(draws) for draws in of_seed] for of_seed in flags_SNk]


def difference(a: Measured, b: Measured, score: str = "solved") -> Difference | None:
    """The score of a minus that of b; None if they share no seed, or fewer than two problems.

    Methods are compared in the seeds that both have: how much runs of one seed differ from those of others is not
    known. A single SFT run is compared with every seed of a method whose runs all have the same adapters, which is
    then this SFT; the interval is for this reference.
    """
    problems = sorted(set(a.problems) & set(b.problems))
    seeds_a = seeds_b = sorted(set(a.rows) & set(b.rows))
    if is_reference(a, b) or is_reference(b, a):
        seeds_a, seeds_b = sorted(a.rows), sorted(b.rows)
    if not seeds_a or not seeds_b or len(problems) < 2:
        return None
    flags_a, flags_b = a.flags(score, seeds_a, problems), b.flags(score, seeds_b, problems)
    estimate = paired_difference(means(flags_a), means(flags_b))
    parts = components(flags_a, flags_b)
    samples = min(len(flags_a[0][0]), len(flags_b[0][0]))
    return Difference(a, b, score, estimate, detectable_difference(parts, estimate.problems, samples, estimate.seeds))


def is_reference(sft: Measured, other: Measured) -> bool:
    """Whether a method is one SFT run that all runs of another method share."""
    return family(sft.method) == "sft" and len(sft.rows) == 1 and len(other.adapters) == 1


def all_differences(policies: Sequence[Measured], score: str = "solved") -> list[Difference]:
    """The differences of all pairs of methods, for the policies under training."""
    mixed = [policy for policy in policies if policy.who == "mixed"]
    pairs = [difference(a, b, score) for a, b in combinations(mixed, 2)]
    return [each for each in pairs if each is not None]


def adjusted(differences: Sequence[Difference]) -> list[float]:
    """The p values of the differences, adjusted for their number by Holm's method."""
    return holm([each.estimate.p for each in differences])
