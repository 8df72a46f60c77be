"""Curves of a method over its seeds: mean, lowest and highest value."""

from collections.abc import Sequence
from dataclasses import dataclass

from lmix.report.runs import Run, tell_apart

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
    """Mean and range of a value over a method's seeds, for each step."""

    steps: list[int]
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


def band(runs: Sequence[Run], tag: str) -> Band | None:
    """A scalar over several seeds, at the steps that all of them have; None if there are none."""
    values = [dict(run.scalars.get(tag, [])) for run in runs]
    steps = sorted(set.intersection(*(set(v) for v in values)))
    if not steps:
        return None
    columns = [[v[step] for v in values] for step in steps]
    return Band(steps, [sum(c) / len(c) for c in columns], [min(c) for c in columns], [max(c) for c in columns])


def seeds_text(runs: Sequence[Run]) -> str:
    """The number of seeds behind a curve, as text."""
    seeds = len({run.seed for run in runs})
    text = "1 seed" if seeds == 1 else f"{seeds} seeds"
    return text if seeds == len(runs) else f"{len(runs)} runs of {text}"
