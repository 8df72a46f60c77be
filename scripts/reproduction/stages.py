"""All stages of a preset in order, and an estimate of their time."""

from collections.abc import Sequence
from pathlib import Path

from .arguments import flags
from .cell import Cell
from .preset import Estimate, Preset
from .stage import Stage


def stages(preset: Preset, out: Path, methods: Sequence[str], seeds: Sequence[int], extra: list[str]) -> list[Stage]:
    """All stages in order, with the preset's runs restricted to `methods` and `seeds`."""
    planned: list[Stage] = []
    for cell in (Cell(preset, task, model, out, extra) for model in preset.models for task in preset.tasks):
        if preset.sft.adapter is None:
            planned.append(cell.sft())
        planned += cell.evaluations("base")
        rates = preset.training.learning_rates or [None]
        planned += [cell.run(method, seed, rate) for seed in seeds for method in methods for rate in rates]
        if "fixed" in methods and preset.seeds[0] in seeds:
            planned += cell.evaluations("trained")
    return [*planned, report(planned, out)]


def report(planned: Sequence[Stage], out: Path) -> Stage:
    """The stage that writes tables and figures of all results, except for those of SFT."""
    results = [str(stage.folder) for stage in planned if stage.folder.parent.name != "sft"]
    line = ["python", "-m", "lmix", "report", *results, *flags({"out": str(out / "report"), "title": out.name})]
    return Stage("report", line, out / "report", always=True)


def estimate(assumed: Estimate, waiting: Sequence[Stage]) -> str:
    """Estimate the time of stages, from their completions, the mean length and the measured rate, as text."""
    tokens = sum(stage.completions for stage in waiting) * assumed.mean_completion_length
    text = f"{len(waiting)} stages, about {tokens / 1e6:,.1f} million tokens"
    if assumed.tokens_per_second is None:
        return f"{text}; no time estimate: the rate was not measured on such a machine"
    hours = tokens / assumed.tokens_per_second / 3600
    return f"{text}: {hours:.1f} hours at {assumed.tokens_per_second:g} tokens/s (measured on 2 CPU cores)"
