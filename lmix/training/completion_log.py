"""The log of a run's completions."""

import json
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger

from lmix.evaluation.rows import CompletionRow, completion_rows
from lmix.files import json_lines, write_lines
from lmix.training.run_folder import run_folder


class CompletionLog(L.Callback):
    """Write every completion as jsonl into the run folder, and some as a text table for TensorBoard.

    Nothing is written under `trainer.fast_dev_run`.

    Args:
        table_rows: how many of a step's completions the table shows.
        every_n_steps: outer steps between tables.

    Raises:
        ValueError: a number is below 1.
    """

    def __init__(self, table_rows: int = 8, every_n_steps: int = 5) -> None:
        for name, value in (("table_rows", table_rows), ("every_n_steps", every_n_steps)):
            if value < 1:
                raise ValueError(f"CompletionLog.{name} must be at least 1, not {value}")
        self.table_rows, self.every_n_steps = table_rows, every_n_steps

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Rename files that another run left in the folder, such as one killed before its first checkpoint."""
        for path in self.written(trainer) if trainer.ckpt_path is None else []:
            number = next(n for n in count(1) if not path.with_suffix(f".jsonl.{n}").exists())
            path.rename(path.with_suffix(f".jsonl.{number}"))

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """On resuming in the same folder, drop rows after the checkpoint: they will be sampled again."""
        for path in self.written(trainer) if trainer.global_step else []:
            drop_later_rows(path, trainer.global_step)

    def written(self, trainer: L.Trainer) -> list[Path]:
        """Files of training and its evaluations, from any number of ranks. Empty on all ranks but rank 0."""
        folder = run_folder(trainer) / "completions"
        if trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
            return []
        paths = [path for name in ("train", "val") for path in folder.glob(f"{name}*.jsonl")]
        return paths if trainer.is_global_zero else []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any, **__: Any) -> None:
        rows = completion_rows(pl_module.groups)
        self.append(trainer, "train", rows)
        if trainer.global_step % self.every_n_steps == 0 or trainer.global_step == trainer.max_steps:
            self.table(trainer, "train", rows)

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        rows = completion_rows(pl_module.groups)
        self.append(trainer, "val", rows)
        self.table(trainer, "val", rows)

    def on_test_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        rows = completion_rows(pl_module.groups)
        self.append(trainer, "test", rows)

    def on_predict_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        rows = completion_rows(pl_module.groups)
        self.append(trainer, "predict", rows)

    def append(self, trainer: L.Trainer, name: str, rows: Sequence[CompletionRow]) -> None:
        folder = run_folder(trainer)  # a broadcast: ranks without rows must call it too
        if not rows or trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
            return
        suffix = f"-rank{trainer.global_rank}" if trainer.world_size > 1 else ""
        path = folder / "completions" / f"{name}{suffix}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(json_lines(row.as_dict() for row in rows))

    def table(self, trainer: L.Trainer, name: str, rows: Sequence[CompletionRow]) -> None:
        for logger in trainer.loggers if rows else ():
            if isinstance(logger, TensorBoardLogger):
                text = markdown_table(rows[: self.table_rows])
                logger.experiment.add_text(f"{name}/completions", text, trainer.global_step)


def drop_later_rows(path: Path, step: int) -> None:
    """Keep the rows up to and including a step. A half-written last line is dropped as well."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_bytes().split(b"\n"):  # not splitlines(), which would also split at U+2028 inside a text
        with suppress(ValueError):  # half a line
            row = json.loads(line)
            if not isinstance(row, dict) or row.get("step", step) <= step:
                kept.append(line.decode() + "\n")
    write_lines(path, kept)


def markdown_table(rows: Sequence[CompletionRow]) -> str:
    """Completions with gold and parsed answer, as a table for TensorBoard's text panel."""
    lines = ["| problem | completion | gold | answer | reward |", "| --- | --- | --- | --- | ---: |"]
    for row in rows:
        cells = [row.problem, row.completion, row.gold, "" if row.answer is None else row.answer, f"{row.reward:g}"]
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", "<br>") for cell in cells) + " |")
    return "\n".join(lines)
