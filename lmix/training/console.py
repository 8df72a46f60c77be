"""Console output of a run: a progress bar while tokens are sampled, and one line per step."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks.progress.progress_bar import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from lmix.evaluation.rows import completion_rows
from lmix.evaluation.zero_rewards import count_causes, report

COLUMNS = {
    "train/loss": "loss {:.4f}",
    "train/reward": "reward {:.3f}",
    "train/format_rate": "format {:.3f}",
    "train/dead_groups": "dead {:.2f}",
    "train/completion_length": "length {:.0f}",
    "train/entropy": "entropy {:.3f}",
    "train/grad_norm": "grad {:.3g}",
    "alpha": "alpha {:.2f}",
    "perf/rollout_tokens_per_second": "{:,.0f} tokens/s",
    "perf/rollout_seconds": "rollout {:.1f} s",
    "perf/update_seconds": "update {:.1f} s",
}
"""Metrics on a step's line, in this order; those that are not logged are left out."""

RATES = {"solve_rate": "solve rate", "format_rate": "format rate", "right_anywhere_rate": "right anywhere"}
"""Metrics shown for an evaluation."""
SAMPLED = {"avg_at_k": "avg@k", "pass_at_k": "pass@k", "maj_at_k": "maj@k"}


class StepConsole(ProgressBar):
    """A progress bar for the completions being sampled (on a terminal), a line for each outer step, and a summary."""

    def __init__(self) -> None:
        super().__init__()
        self.console = Console(highlight=False, soft_wrap=True)
        self.bar: Progress | None = None
        self.enabled = True
        self.history: list[tuple[float, ...]] = []

    def disable(self) -> None:
        self.enabled = False

    def enable(self) -> None:
        self.enabled = True

    # the bar

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self.enabled = self.enabled and trainer.is_global_zero
        if self.enabled:
            pl_module.progress = self.on_tokens  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]

    def on_tokens(self, ended: int, rows: int, tokens: int) -> None:
        """Update the bar. It exists only while tokens are sampled, so that it does not break up printed lines."""
        if not self.console.is_terminal:
            return
        if self.bar is None:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[text]}"),
                TimeElapsedColumn(),
            )
            self.bar = Progress(*columns, console=self.console, transient=True)
            self.bar.start()
            self.bar.add_task("drawing", total=rows, text="")
        text = f"{ended}/{rows} completions, {tokens:,} tokens"
        self.bar.update(self.bar.task_ids[0], completed=ended, text=text)
        if ended == rows:
            self.bar.stop()
            self.bar = None

    # the lines

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step:
            self.say(f"resuming after step {trainer.global_step}")
        if trainer.log_dir:
            self.say(f"run folder: {trainer.log_dir}")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any, **__: Any) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        shown = [text.format(metrics[name]) for name, text in COLUMNS.items() if name in metrics]
        self.say(f"step {trainer.global_step:>3}/{trainer.max_steps}  {'  '.join(shown)}")
        if trainer.global_step == 1:
            self.say_causes(pl_module)

    def say_causes(self, pl_module: Any) -> None:
        """Print why completions of the first step got no reward: counts over all ranks, examples from rank 0.

        Every rank must call it.
        """
        rows = completion_rows(pl_module.groups)
        causes = count_causes(rows)
        *counts, completions = pl_module.sum_over_ranks([*causes.values(), len(rows)])
        if sum(counts):
            for line in report(rows, dict(zip(causes, counts, strict=True)), int(completions)):
                self.say(line)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.say_rates(trainer, "val")

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.say_rates(trainer, "test")

    def say_rates(self, trainer: L.Trainer, prefix: str) -> None:
        metrics = trainer.callback_metrics
        if f"{prefix}/solve_rate" in metrics:
            rates = [float(metrics[f"{prefix}/{name}"]) for name in RATES]
            self.history.append((trainer.global_step, *rates))
            shown = [f"{text} {rate:.3f}" for text, rate in zip(RATES.values(), rates, strict=True)]
            self.say(f"held-out problems, step {trainer.global_step}: {', '.join(shown)}")
            for who in ("", "policy/", "reference/"):
                found = {name: metrics.get(f"{prefix}/{who}{name}") for name in (*RATES, *SAMPLED)}
                shown = [f"{(RATES | SAMPLED)[name]} {float(v):.3f}" for name, v in found.items() if v is not None]
                if who and shown:
                    self.say(f"  {who.removesuffix('/')} alone: {', '.join(shown)}")
                elif found["avg_at_k"] is not None:
                    self.say(f"  samples: {', '.join(shown[len(RATES) :])}")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not (self.enabled and self.history):
            return
        table = Table(title="held-out problems, greedy decoding of the mixed policy")
        for column in ("step", *RATES.values()):
            table.add_column(column, justify="right")
        for step, *rates in self.history:
            table.add_row(str(step), *(f"{rate:.3f}" for rate in rates))
        self.console.print(table)

    def say(self, line: str) -> None:
        if self.enabled:
            self.console.print(line, markup=False)
