"""The command `power`: which differences a study with given problems, samples and seeds can detect."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table

from lmix.evaluation.output import new_console
from lmix.evaluation.statistics import (
    Components,
    assumed_components,
    components,
    detectable_difference,
    paired_difference,
    problems_needed,
    seeds_needed,
)
from lmix.evaluation.statistics import power as power_of
from lmix.report.bands import steps_text
from lmix.report.evidence import Measured, means, measure, read_held_out
from lmix.report.runs import read_run

GRID = ((100, 300, 1000), (1, 3, 5, 10))
"""Numbers of problems and of seeds in the table."""


def power(
    difference: float = 0.05,
    problems: int = 300,
    samples: int = 4,
    seeds: int = 3,
    rate: float = 0.4,
    spread: float = 0.5,
    agreement: float = 0.7,
    seed_sd: float = 0.02,
    wanted: float = 0.8,
    a: list[str] | None = None,
    b: list[str] | None = None,
) -> dict[str, Any]:
    """Compute the power of a study that compares two methods, the difference it can detect, and the sizes it needs.

    The test is that of `lmix report`: paired by problem and by seed, two-sided at 5 %. Variances follow from the
    assumptions below, or are estimated from stored runs of two methods (--a and --b).

    Args:
        difference: the true difference as a fraction: 0.05 is 5 points.
        problems: number of held-out problems.
        samples: number of completions per problem.
        seeds: number of training runs per method.
        rate: solve rate of the weaker method.
        spread: how much problems differ in difficulty, from 0 (all equal) to 1 (each is always or never solved): the
            correlation of two completions of one problem.
        agreement: correlation of the two methods' rates over problems.
        seed_sd: standard deviation of a method's rate over seeds.
        wanted: the desired probability of detecting a difference.
        a: run folders of the first method with stored evaluations, one per seed; replaces the assumptions.
        b: run folders of the second method, with the same seeds in the same order.

    Returns:
        `power`, `detectable`, `problems_needed` and `seeds_needed`; null if there is no such number.

    Raises:
        ValueError: a setting is out of range, or a folder has no stored evaluations.
    """
    check(difference, problems, samples, seeds, wanted)
    console = new_console()
    if a or b:
        parts, problems, samples, seeds = stored(console, a or [], b or [])
    else:
        parts = assumed_components(rate, difference, spread, agreement, seed_sd)
    answer = {
        "power": power_of(difference, parts, problems, samples, seeds),
        "detectable": detectable_difference(parts, problems, samples, seeds, wanted),
        "problems_needed": problems_needed(difference, parts, samples, seeds, wanted),
        "seeds_needed": seeds_needed(difference, parts, problems, samples, wanted),
    }
    size = f"{problems} problems x {samples} samples x {seeds} seeds"
    none = "no number suffices"
    points = f"{100 * difference:.1f} points"
    console.print(f"{size}: a true difference of {points} is detected with probability {answer['power']:.0%}")
    console.print(f"  detectable with probability {wanted:.0%}: {in_points(answer['detectable'])}")
    needed = answer["problems_needed"] or none
    console.print(f"  problems needed to detect {points} with probability {wanted:.0%}: {needed}")
    console.print(f"  seeds needed with {problems} problems: {answer['seeds_needed'] or none}")
    table = Table(title=f"difference detectable with probability {wanted:.0%}, {samples} samples per problem")
    for column in ("problems", *(f"{count} seeds" if count > 1 else "1 seed*" for count in GRID[1])):
        table.add_column(column, justify="right")
    for count in GRID[0]:
        seen = [detectable_difference(parts, count, samples, s, wanted) for s in GRID[1]]
        table.add_row(str(count), *map(in_points, seen))
    console.print(table)
    console.print("* for the two trained models only, not for other seeds")
    return answer


def check(difference: float, problems: int, samples: int, seeds: int, wanted: float) -> None:
    """Raise ValueError if a setting is out of range."""
    for name, value, least in (("problems", problems, 2), ("samples", samples, 1), ("seeds", seeds, 1)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, not {value}")
    for name, share in (("difference", difference), ("wanted", wanted)):
        if not 0 < share < 1:
            raise ValueError(f"{name} must lie between 0 and 1, not {share}: 0.05 is 5 points")


def stored(console: Any, a: list[str], b: list[str]) -> tuple[Components, int, int, int]:
    """Variance components, problems, samples and seeds of two methods' runs, each at its last shared evaluation.

    Also prints the estimated difference.

    Raises:
        ValueError: the folders do not pair up, or have no stored evaluations.
    """
    if len(a) != len(b):
        raise ValueError(
            f"a and b need one run folder for each seed, the same seeds in order, not {len(a)} and {len(b)}"
        )
    first, second = (measured_in_order(name, folders) for name, folders in (("a", a), ("b", b)))
    shared = sorted(set(first.problems) & set(second.problems))
    seeds = sorted(first.rows)
    flags = [policy.flags("solved", seeds, shared) for policy in (first, second)]
    parts, estimate = components(*flags), paired_difference(*map(means, flags))
    console.print(
        f"a (step {steps_text(first.steps)}) minus b (step {steps_text(second.steps)}): "
        f"{100 * estimate.mean:+.1f} points ({100 * estimate.low:+.1f} to {100 * estimate.high:+.1f}), "
        f"p {estimate.p:.2g}; standard deviations of the difference: seeds {parts.seed**0.5:.3f}, problems "
        f"{parts.problem**0.5:.3f}, both {parts.interaction**0.5:.3f}, samples {parts.sample**0.5:.3f}"
    )
    return parts, len(shared), len(flags[0][0][0]), len(seeds)


def measured_in_order(name: str, folders: Sequence[str]) -> Measured:
    """The policy under training of one method's runs, with the runs' places in the list as seeds."""
    runs = [replace(read_run(Path(folder)), seed=place) for place, folder in enumerate(folders)]
    stored = [read_held_out(run.folder) for run in runs]
    for run, rows in zip(runs, stored, strict=True):
        if not rows:
            raise ValueError(f"'{run.folder}' has no completions/val.jsonl: give folders of runs that were evaluated")
    policy = measure(name, "mixed", runs, stored)
    if policy is None:
        raise ValueError(f"the runs of {name} share no evaluation: give runs of equal length or compute")
    return policy


def in_points(difference: float | None) -> str:
    return "none" if difference is None else f"{100 * difference:.1f} points"
