"""What is worth keeping of a study: a few hundred kilobytes a run, from which `lmix report` makes its numbers again."""

import gzip
import shutil
from collections.abc import Sequence
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from lmix.report.runs import EVENTS, read_scalars

from .runs import TaskStudy

TAGS = ("val/", "compute/", "train/", "alpha")
"""Beginnings of the scalars that are kept."""


def keep(studies: Sequence[TaskStudy], target: Path) -> int:
    """Copy choices, the sweep, and each finished run's configuration, scalars and held-out completions.

    Runs that are in `target` already are left as they are.

    Returns:
        The number of runs that were copied.
    """
    copied = 0
    for study in studies:
        for name in ("choices.json", "sweep/sweep.json"):
            source = study.out / study.task / name
            if source.is_file():
                (target / study.task / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target / study.task / name)
        runs = [(method, seed) for method, seeds in study.study.seeds.items() for seed in seeds]
        for stage in (study.run(method, seed) for method, seed in runs):
            to = target / stage.folder.relative_to(study.out)
            if stage.done and not (to / "config.yaml").exists():
                keep_run(stage.folder, to)
                copied += 1
    return copied


def keep_run(folder: Path, to: Path) -> None:
    """Copy a run's configuration, scalars and held-out completions, these compressed."""
    shutil.rmtree(to, ignore_errors=True)  # what a killed copy left
    (to / "completions").mkdir(parents=True)
    for path in (folder / "completions").glob("val*.jsonl"):
        # without a time, so that equal rows make equal files
        (to / "completions" / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    with SummaryWriter(str(to)) as writer:
        for tag, points in read_scalars(sorted(folder.glob(EVENTS))).items():
            for step, value in points if tag.startswith(TAGS) else []:
                writer.add_scalar(tag, value, step)
    shutil.copyfile(folder / "config.yaml", to / "config.yaml")  # last: it marks a whole copy
