"""GPU hours and memory of a preset's stages by the planner (`python -m lmix plan`). Nothing is measured or run."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lmix.cli.commands import planned_run
from lmix.planning import Device, Needs, needs
from lmix.planning.estimates import peak

from .arguments import flags, parse
from .preset import Preset
from .stage import Stage

SEED = re.compile(r", seed \d+$")


@dataclass(frozen=True)
class Cost:
    """The cost of one stage."""

    hours: float
    peak_gb: float


def costs(stages: Sequence[Stage], preset: Preset, device: Device) -> dict[str, Cost]:
    """The cost of each stage by its name without the seed. Reports cost nothing.

    Time is estimated for prompts and completions of the preset's mean lengths, memory for the longest ones. Evaluations
    after training are estimated from the first training run of the cell, which has both streams.
    """
    by_name: dict[str, Cost] = {}
    first: dict[str, tuple[Needs, Needs]] = {}
    for stage in sorted(stages, key=lambda stage: stage.last is None):  # training runs come first
        name, cell = SEED.sub("", stage.name), stage.name.partition(":")[0]
        if name in by_name or not stage.completions:
            continue
        if stage.last is None:
            longest, usual = first[cell]
            seconds = stage.completions * usual.completion_seconds
        else:
            longest, usual = run_needs(stage, preset, device)
            if usual.run.draws:
                first.setdefault(cell, (longest, usual))
            steps, drawn = int(str(parse(stage.command)["trainer.max_steps"])), usual.run.rows * usual.run.draws
            seconds = steps * (usual.rollout_seconds + usual.update_seconds)
            seconds += (stage.completions - steps * drawn) * usual.completion_seconds
        by_name[name] = Cost(seconds / 3600, peak(longest.parts) / 1e9)
    return by_name


def run_needs(stage: Stage, preset: Preset, device: Device) -> tuple[Needs, Needs]:
    """The needs of a run with all rows at full length, and with rows of the preset's mean lengths."""
    longest = needs(*planned_run(planned_arguments(stage)), device, preset.max_prompt_tokens)
    mean = {"tokens": preset.estimate.mean_completion_length, "prompt_tokens": preset.estimate.mean_prompt_length}
    return longest, replace(longest, run=replace(longest.run, **{k: v for k, v in mean.items() if v}))


def planned_arguments(stage: Stage) -> list[str]:
    """A run's arguments for the planner, without adapters that earlier stages have not written yet."""
    settings, words = parse(stage.command), [word for word in stage.command[4:] if word.startswith("--config=")]
    settings.pop("config")
    for name in ("model.adapters.policy", "model.adapters.reference"):
        if name in settings and "/checkpoints/step=" in str(settings[name]) and not Path(str(settings[name])).exists():
            settings[name] = "base" if name.endswith("reference") else None
    return [*words, *flags(settings)]


def table(stages: Sequence[Stage], preset: Preset, device: Device = Device()) -> str:
    """A Markdown table with a row for each stage that has a cost, its number of runs, and the sum."""
    by_name = costs(stages, preset, device)
    names = [SEED.sub("", stage.name) for stage in stages]
    total = sum(by_name[name].hours for name in names if name in by_name)
    figures = f"{device.device_gb:g} GB, {device.tflops:g} TFLOP/s, {device.bandwidth:g} GB/s"
    return "\n".join(
        [
            f"By the planner, not measured: matmuls and memory traffic only, on GPUs of {figures}; completions of "
            f"{preset.estimate.mean_completion_length} tokens on average, memory at full length.",
            "",
            "| stage | runs | GPU hours per run | peak, GB |",
            "| --- | ---: | ---: | ---: |",
            *(f"| {name} | {names.count(name)} | {c.hours:.2f} | {c.peak_gb:.1f} |" for name, c in by_name.items()),
            f"| **sum** | | **{total:.2f}** | |",
        ]
    )
