"""Callbacks that write a run down: its completions, and its policy as a peft folder beside each checkpoint."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger

from lmix.training.completions import CompletionRow


class CompletionLog(L.Callback):
    """Write every completion as jsonl into the run folder, and some as a text table for TensorBoard.

    Args:
        table_rows: completions of a step in the table.
        every_n_steps: steps between tables.
    """

    def __init__(self, table_rows: int = 8, every_n_steps: int = 5) -> None:
        self.table_rows, self.every_n_steps = table_rows, every_n_steps

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any, **__: Any) -> None:
        self.append(trainer, "train", pl_module.rows)
        if trainer.global_step % self.every_n_steps == 0 or trainer.global_step == trainer.max_steps:
            self.table(trainer, "train", pl_module.rows)

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.append(trainer, "val", pl_module.rows)
        self.table(trainer, "val", pl_module.rows)

    def on_test_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.append(trainer, "test", pl_module.rows)

    def append(self, trainer: L.Trainer, name: str, rows: Sequence[CompletionRow]) -> None:
        if trainer.log_dir is None:
            return
        suffix = f"-rank{trainer.global_rank}" if trainer.world_size > 1 else ""
        path = Path(trainer.log_dir) / "completions" / f"{name}{suffix}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(json.dumps(row.as_dict(), ensure_ascii=False) + "\n" for row in rows)

    def table(self, trainer: L.Trainer, name: str, rows: Sequence[CompletionRow]) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                text = markdown_table(rows[: self.table_rows])
                logger.experiment.add_text(f"{name}/completions", text, trainer.global_step)


def markdown_table(rows: Sequence[CompletionRow]) -> str:
    """Completions with gold and parsed answer, as TensorBoard's text panel shows them."""
    lines = ["| problem | completion | gold | answer | reward |", "| --- | --- | --- | --- | ---: |"]
    for row in rows:
        cells = [row.problem, row.completion, row.gold, "" if row.answer is None else row.answer, f"{row.reward:g}"]
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", "<br>") for cell in cells) + " |")
    return "\n".join(lines)


class PolicyCheckpoint(ModelCheckpoint):
    """Lightning's checkpoints of the adapters, each with the policy as an ordinary peft folder beside it.

    Args:
        every_n_steps: outer steps between checkpoints; the last step is saved in any case.
        keep: how many of the newest stay; -1 keeps all.
    """

    def __init__(self, every_n_steps: int = 10, keep: int = 3) -> None:
        super().__init__(
            filename="step={step:04.0f}",
            auto_insert_metric_name=False,
            monitor="step",
            mode="max",
            save_top_k=keep,
            every_n_train_steps=every_n_steps,
            enable_version_counter=False,
        )

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        if self._last_global_step_saved != trainer.global_step and not self._should_skip_saving_checkpoint(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        if trainer.is_global_zero:
            trainer.lightning_module.policy.save_policy(adapter_folder(filepath))  # pyright: ignore

    def _remove_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        super()._remove_checkpoint(trainer, filepath)
        if trainer.is_global_zero:
            shutil.rmtree(adapter_folder(filepath), ignore_errors=True)


def adapter_folder(checkpoint: str) -> Path:
    """Where the peft folder of a checkpoint lies."""
    return Path(checkpoint).with_suffix("")
