"""Values of a method over its seeds: mean, lowest and highest, and the evaluations that its runs share."""

from collections.abc import Sequence
from dataclasses import dataclass

from lmix.report.runs import FLOPS, SOLVE_RATE, Run, tell_apart

FAMILIES = (
    "grpo",
    "kl_grpo",
    "sft",
    "sft_continued",
    "fixed",
    "fixed_probs",
    "fixed_base_anchor",
    "schedule",
    "adaptive",
    "accuracy_weighted",
    "ensemble",
    "logit_fusion",
    "dr_grpo",
    "dapo",
    "rloo",
    "cispo",
    "gspo",
    "chord",
    "luffy",
    "distill",
    "sdpo",
)
"""The methods that `method_name` knows, in the order of tables and figures."""


@dataclass(frozen=True)
class Band:
    """Mean and range of a value over a method's seeds, for each step or amount of compute."""

    at: Sequence[float]
    """Steps, or 10^15 floating-point operations."""
    mean: list[float]
    low: list[float]
    high: list[float]


def family(method: str) -> str:
    """The family of a method: its name without the variant."""
    return method.partition(",")[0]


def detail(method: str) -> str:
    """The variant of a method: its alpha, if that is fixed, and other settings."""
    return method.partition(", ")[2]


def by_method(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Group runs by method, in the order of `FAMILIES`. Runs in a group have equal settings (see `tell_apart`)."""
    runs = tell_apart(runs)
    methods = sorted({run.method for run in runs}, key=lambda method: (FAMILIES.index(family(method)), method))
    return {method: [run for run in runs if run.method == method] for method in methods}


def evaluations(runs: Sequence[Run]) -> list[tuple[int, ...]]:
    """The evaluations that the runs of one method share, in order; for each, its step in every run.

    An evaluation is shared if all runs made it after the same number of steps. If a compute budget ended all runs, the
    evaluations at their ends are shared as well: the number of steps differs, the compute does not.
    """
    steps = [[step for step, _ in run.scalars.get(SOLVE_RATE, [])] for run in runs]
    shared = [(step,) * len(runs) for step in sorted(set.intersection(*map(set, steps)))]
    if all(steps) and all(run.spent_its_budget for run in runs):
        ends = tuple(of_run[-1] for of_run in steps)
        shared += [ends] if ends not in shared else []
    return shared


def steps_text(steps: Sequence[int]) -> str:
    """The steps of one evaluation in words: `30`, or `52 to 55`."""
    low, high = min(steps), max(steps)
    return str(low) if low == high else f"{low} to {high}"


def band(runs: Sequence[Run], tag: str) -> Band | None:
    """A scalar over several seeds, at the steps that all of them have; None if there are none."""
    values = [dict(run.scalars.get(tag, [])) for run in runs]
    steps = sorted(set.intersection(*(set(v) for v in values)))
    if not steps:
        return None
    columns = [[v[step] for v in values] for step in steps]
    return band_of(steps, columns)


def compute_band(runs: Sequence[Run], tag: str) -> Band | None:
    """A scalar of evaluations over several seeds, against the mean of the operations spent until then, in 10^15."""
    values, spent = [dict(run.scalars[tag]) for run in runs], [{0: 0.0, **dict(run.scalars[FLOPS])} for run in runs]
    shared = evaluations(runs)
    if not shared:
        return None
    columns = [[of_run[step] for of_run, step in zip(values, steps, strict=True)] for steps in shared]
    flops = [[of_run[step] / 1e15 for of_run, step in zip(spent, steps, strict=True)] for steps in shared]
    return band_of([sum(f) / len(f) for f in flops], columns)


def band_of(at: Sequence[float], columns: Sequence[Sequence[float]]) -> Band:
    """The band of the values in each column, one column for each place in `at`."""
    return Band(at, [sum(c) / len(c) for c in columns], [min(c) for c in columns], [max(c) for c in columns])


def seeds_text(runs: Sequence[Run]) -> str:
    """The number of seeds behind a curve, as text."""
    seeds = len({run.seed for run in runs})
    text = "1 seed" if seeds == 1 else f"{seeds} seeds"
    return text if seeds == len(runs) else f"{len(runs)} runs of {text}"
