"""A run folder as numbers: what was configured, and every scalar that was logged."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lmix.report.methods import differences, last_part, method_name, model_arguments

EVENTS = "events.out.tfevents.*"
SOLVE_RATE, FORMAT_RATE, FLOPS = "val/solve_rate", "val/format_rate", "compute/flops"
Points = list[tuple[int, float]]


@dataclass(frozen=True)
class Run:
    """One training run."""

    folder: Path
    method: str
    """See `method_name`; beside other runs, see `tell_apart`."""
    task: str
    """See `task_name`."""
    backbone: str
    """Its last path component."""
    seed: int | None
    config: dict[str, Any]
    scalars: dict[str, Points]
    """Tag -> (step, value), by step, one value a step. Held-out values carry the number of updates made before."""

    @property
    def setting(self) -> str:
        """What runs must share to be compared: task and backbone."""
        return f"{self.task}, {self.backbone}"


def read_run(folder: Path) -> Run:
    """Read what TensorBoardLogger and LightningCLI left in a run's folder.

    Raises:
        ValueError: no event files, no config.yaml, or a config.yaml that lmix's CLI has not written.
    """
    files = sorted(folder.glob(EVENTS))
    if not files or not (folder / "config.yaml").is_file():
        missing = "config.yaml" if files else EVENTS
        raise ValueError(f"{folder} is no run: it has no {missing}")
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        method, task = method_name(config), task_name(config)
        backbone, seed = last_part(model_arguments(config)["backbone"]["path"]), config["seed_everything"]
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / 'config.yaml'} is not one that lmix's fit writes: give a run's folder") from error
    return Run(folder, method, task, backbone, seed, config, read_scalars(files))


def read_scalars(files: Sequence[Path]) -> dict[str, Points]:
    """All scalars of a run's event files; where a step comes twice, as after resuming, the later value wins."""
    scalars: dict[str, dict[int, float]] = {}
    for file in files:
        events = EventAccumulator(str(file), size_guidance={"scalars": 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            scalars.setdefault(tag, {}).update((event.step, event.value) for event in events.Scalars(tag))
    return {tag: sorted(values.items()) for tag, values in scalars.items()}


def join_resumed(runs: Sequence[Run]) -> list[Run]:
    """Put runs that went on in a folder of their own (`--ckpt_path`) behind those that they continue.

    Returns:
        The runs without those that another continues; from its first step on, the continuation's values hold.
    """
    by_folder = {run.folder.resolve(): run for run in runs}

    def parent(run: Run) -> Run | None:
        path = run.config.get("ckpt_path")
        trained = any(tag.startswith("train/") for tag in run.scalars)  # else the checkpoint was only evaluated
        found = by_folder.get(Path(path).resolve().parent.parent) if path and trained else None
        return None if found is run else found

    def joined(run: Run) -> Run:
        before = parent(run)
        if before is None:
            return run
        scalars = dict(joined(before).scalars)
        for tag, points in run.scalars.items():
            scalars[tag] = [p for p in scalars.get(tag, []) if p[0] < points[0][0]] + points
        return dataclasses.replace(run, scalars=scalars)

    continued = [before.folder for run in runs if (before := parent(run))]
    return [joined(run) for run in runs if run.folder not in continued]


def tell_apart(runs: Sequence[Run]) -> list[Run]:
    """Extend the method of runs that share its name by the settings in which they differ (`kl_grpo, beta=0.1`).

    Afterwards runs of one setting have the same method exactly where `settings` of their configurations are equal.
    """
    labelled = list(runs)
    for name in dict.fromkeys((run.setting, run.method) for run in runs):
        places = [place for place, run in enumerate(runs) if (run.setting, run.method) == name]
        for place, parts in zip(places, differences([runs[place].config for place in places]), strict=True):
            labelled[place] = dataclasses.replace(runs[place], method=", ".join([runs[place].method, *parts]))
    return labelled


def task_name(config: dict[str, Any]) -> str:
    """The task's own name, as sweep.json has it; for the general class, the name of its data.

    A class that is not installed here gives its own name, without `Task` and in small letters.
    """
    task = config["data"]["task"]
    module, _, kind = task["class_path"].rpartition(".")
    try:
        name = getattr(import_module(module), kind).name
    except (ImportError, AttributeError, ValueError):
        name = kind.removesuffix("Task").lower()
    arguments = task["init_args"]
    own = {"dataset": lambda: last_part(arguments["source"]), "reasoning_gym": lambda: arguments["dataset"]}
    return own.get(name, lambda: name)()
