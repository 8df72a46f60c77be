"""Reading run folders: the configuration, and every logged scalar."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lmix.report.methods import callbacks, differences, last_part, method_name, model_arguments

EVENTS = "events.out.tfevents.*"
SOLVE_RATE, FORMAT_RATE, FLOPS = "val/solve_rate", "val/format_rate", "compute/flops"
Points = list[tuple[int, float]]


@dataclass(frozen=True)
class Run:
    """One training run."""

    folder: Path
    method: str
    """See `method_name`, and `tell_apart` for runs that are compared."""
    task: str
    """See `task_name`."""
    backbone: str
    """The last component of the backbone's path."""
    seed: int | None
    config: dict[str, Any]
    scalars: dict[str, Points]
    """Tag -> (step, value) in order of steps, one value per step. The step of held-out values is the number of steps
    done before."""

    @property
    def setting(self) -> str:
        """Task and backbone. Only runs that share them are compared."""
        return f"{self.task}, {self.backbone}"

    @property
    def spent_its_budget(self) -> bool:
        """Whether the run went on until its `ComputeBudget` ended it."""
        budgets = [
            c["init_args"]["flops"]
            for c in callbacks(self.config)
            if last_part(c["class_path"], ".") == "ComputeBudget"
        ]
        spent = [flops for _, flops in self.scalars.get(FLOPS, [])]
        return bool(budgets and spent) and spent[-1] >= min(budgets)


def read_run(folder: Path) -> Run:
    """Read the files that TensorBoardLogger and LightningCLI wrote into a run's folder.

    Raises:
        ValueError: event files or config.yaml are missing, or config.yaml was not written by lmix.
    """
    files = sorted(folder.glob(EVENTS))
    if not files or not (folder / "config.yaml").is_file():
        missing = "config.yaml" if files else EVENTS
        raise ValueError(f"{folder} is not a run folder: {missing} is missing")
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        method, task = method_name(config), task_name(config)
        backbone, seed = last_part(model_arguments(config)["backbone"]["path"]), config["seed_everything"]
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / 'config.yaml'} was not written by lmix fit: give a run's folder") from error
    return Run(folder, method, task, backbone, seed, config, read_scalars(files))


def read_scalars(files: Sequence[Path]) -> dict[str, Points]:
    """All scalars of a run's event files. If a step occurs twice, as after resuming, the later value is used."""
    scalars: dict[str, dict[int, float]] = {}
    for file in files:
        events = EventAccumulator(str(file), size_guidance={"scalars": 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            scalars.setdefault(tag, {}).update((event.step, event.value) for event in events.Scalars(tag))
    return {tag: sorted(values.items()) for tag, values in scalars.items()}


def join_resumed(runs: Sequence[Run]) -> list[Run]:
    """Join runs that were resumed in another folder (`--ckpt_path`) with the runs that they continue.

    Returns:
        The runs without those that another run continues. A joined run has the continuation's values from its first
        step on.
    """
    by_folder = {run.folder.resolve(): run for run in runs}

    def parent(run: Run) -> Run | None:
        path = run.config.get("ckpt_path")
        trained = any(tag.startswith("train/") for tag in run.scalars)  # otherwise the checkpoint was only evaluated
        earlier = by_folder.get(Path(path).resolve().parent.parent) if path and trained else None
        return None if earlier is run else earlier

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
    """Extend the method names of runs with equal names by the settings in which they differ (`kl_grpo, beta=0.1`).

    Afterwards, runs on the same task and backbone have equal method names if and only if the `settings` of their
    configurations are equal.
    """
    labelled = list(runs)
    for name in dict.fromkeys((run.setting, run.method) for run in runs):
        places = [place for place, run in enumerate(runs) if (run.setting, run.method) == name]
        for place, parts in zip(places, differences([runs[place].config for place in places]), strict=True):
            labelled[place] = dataclasses.replace(runs[place], method=", ".join([runs[place].method, *parts]))
    return labelled


def task_name(config: dict[str, Any]) -> str:
    """The task's name, as in sweep.json. For `DatasetTask` and `ReasoningGymTask` it is the name of the data set.

    For a class that can't be imported here, it is the class name in lower case, without `Task`.
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
