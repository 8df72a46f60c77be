"""A run folder as numbers: what was configured, and every scalar that was logged."""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

EVENTS = "events.out.tfevents.*"
ALPHA = "\N{GREEK SMALL LETTER ALPHA}"
SOLVE_RATE, FORMAT_RATE = "val/solve_rate", "val/format_rate"
VARIANTS: dict[str, dict[str, Any]] = {
    "objective": {"clip_radius_above": None, "normaliser": "group", "scale_by_std": True, "inner_updates": 1},
    "sampling": {"resample_dead": 0},
}
"""Options that make another method, and their defaults."""
Points = list[tuple[int, float]]


@dataclass(frozen=True)
class Run:
    """One training run."""

    folder: Path
    method: str
    """See `method_name`."""
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
    return Run(folder, method, task, backbone, seed, config, read_scalars(files, evaluated_steps(folder)))


def read_scalars(files: Sequence[Path], evaluated: set[int]) -> dict[str, Points]:
    """All scalars of a run's event files; where a step comes twice, as after resuming, the later value wins.

    Lightning dates an evaluation by the newest batch, one less than the updates made; `evaluated` puts that right.
    """
    scalars: dict[str, dict[int, float]] = {}
    for file in files:
        events = EventAccumulator(str(file), size_guidance={"scalars": 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            for event in events.Scalars(tag):
                late = tag.startswith("val/") and event.step not in evaluated and event.step + 1 in evaluated
                scalars.setdefault(tag, {})[event.step + late] = event.value
    return {tag: sorted(values.items()) for tag, values in scalars.items()}


def evaluated_steps(folder: Path) -> set[int]:
    """Numbers of updates after which the run evaluated, as its log of completions has them."""
    steps = set()
    for file in folder.glob("completions/val*.jsonl"):
        with file.open(encoding="utf-8") as lines:
            steps |= {int(found[1]) for line in lines if (found := re.match(r'\{"step": (\d+)', line))}
    return steps


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


def method_name(config: dict[str, Any]) -> str:
    """The method that a configuration asks for: a family that has a colour, then what sets it apart (`fixed, α=0.5`).

    Raises:
        KeyError: it names no model.
    """
    return ", ".join([base_method(config), *own_classes(config), *variants(model_arguments(config))])


def own_classes(config: dict[str, Any]) -> list[str]:
    """The user's own model and callbacks by name: they make another method."""
    callbacks = config["trainer"].get("callbacks") or []
    paths = [part["class_path"] for part in [config["model"], *callbacks]]
    return [
        path.rpartition(".")[2]
        for path in paths
        if path.split(".")[0] not in ("lmix", "lightning", "pytorch_lightning")
    ]


def variants(arguments: dict[str, Any]) -> list[str]:
    """The settings that make another method of one, where they are not at their defaults."""
    found = []
    for group, defaults in VARIANTS.items():
        given = arguments.get(group) or {}
        found += [f"{name}={given[name]}" for name, value in defaults.items() if given.get(name, value) != value]
    return found


def base_method(config: dict[str, Any]) -> str:
    """The method without the objective's options."""
    arguments = model_arguments(config)
    alpha = arguments.get("alpha", 0.5)
    callbacks = [callback["class_path"] for callback in config["trainer"].get("callbacks") or []]
    if config["model"]["class_path"].endswith("SFTModule"):
        return "sft"
    if weights := arguments.get("weights"):
        return f"ensemble, {' '.join(f'{weight:g}' for weight in weights)}"
    for ending, method in (("AdaptiveAlpha", "adaptive"), ("AlphaSchedule", "schedule")):
        if any(name.endswith(ending) for name in callbacks):
            return method
    if arguments.get("objective", {}).get("beta", 0) > 0:
        return "kl_grpo"
    if alpha == 0:
        return "grpo"
    if arguments.get("mixture") == "probs":
        return f"fixed_probs, {ALPHA}={alpha:g}"
    anchored = arguments["adapters"].get("reference") not in (None, "base")
    return f"{'fixed' if anchored else 'fixed_base_anchor'}, {ALPHA}={alpha:g}"


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
    return last_part(task["init_args"]["source"]) if name == "dataset" else name


def model_arguments(config: dict[str, Any]) -> dict[str, Any]:
    """The model's `init_args`."""
    return config["model"]["init_args"]


def last_part(path: str) -> str:
    """What comes last in a path, hub id or name of an asset."""
    return re.split(r"[/:]", path.rstrip("/"))[-1]
