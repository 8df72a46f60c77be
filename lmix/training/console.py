"""Console output of a run: a progress bar within a step, and one line per step."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks.progress.progress_bar import ProgressBar
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from lmix.data.module import RLDataModule
from lmix.evaluation.output import print_prompt
from lmix.evaluation.rows import completion_rows
from lmix.evaluation.zero_rewards import count_causes, report
from lmix.progress import Pace, StatusLine, time_left

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
    """The first prompt, a line for each outer step with an estimate of the time left, and a summary at the end.

    Within a step, a progress bar shows the completions that have ended, then the micro-batches of the update. It is
    shown on a terminal and in a notebook; a log file has the lines only.
    """

    def __init__(self) -> None:
        super().__init__()
        self.console = Console(highlight=False, soft_wrap=True)
        self.status = StatusLine(self.console)
        self.pace = Pace()
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
            module: Any = pl_module
            module.progress, module.update_progress = self.on_tokens, self.on_passes
            if stage == "fit":
                self.show_data(module.datamodule, module.tokenizer)

    def show_data(self, data: RLDataModule, tokenizer: PreTrainedTokenizerBase) -> None:
        """Print the sizes of the sets and the first training prompt, before the model is loaded."""
        train, held_out = data.sets["train"], data.sets[data.eval_split]
        self.say(f"training problems: {len(train)}, held-out problems: {len(held_out)}")
        if len(train) < data.prompts_per_step:
            self.say(
                f"{len(train)} training problems: a step has {len(train)} prompts, not the {data.prompts_per_step} of "
                "data.prompts_per_step"
            )
        print_prompt(self.console, train[0], tokenizer)

    def on_tokens(self, ended: int, rows: int, tokens: int) -> None:
        """Show how many completions have ended."""
        text = f"{ended}/{rows} completions, {tokens:,} tokens"
        if self.trainer.training:
            self.show("rollouts", ended, rows, text)
        else:
            self.status.show(f"evaluation after step {self.trainer.global_step}", ended, rows, text)
        if ended == rows:
            self.status.hide()

    def on_passes(self, done: int, passes: int) -> None:
        """Show how many micro-batches the update has been through."""
        self.show("update", done, passes, f"{done}/{passes} micro-batches")
        if done == passes:
            self.status.hide()

    def show(self, phase: str, done: int, total: int, text: str) -> None:
        """Show a phase of the step under way, with the time that the run will still take."""
        left = self.time_left()
        self.status.show(f"step {self.step_name(1)} {phase}", done, total, f"{text}, {left}" if left else text)

    def step_name(self, later: int = 0) -> str:
        """`3/40`, or `3` for a run that does not end by its steps; of the newest step or of a later one."""
        step, steps = self.trainer.global_step + later, self.trainer.max_steps
        return f"{step:>3}/{steps}" if steps > 0 else f"{step:>3}"

    def time_left(self) -> str:
        """An estimate; empty where there is none, as before the end of the first step."""
        steps = self.trainer.max_steps - self.trainer.global_step
        return time_left(self.pace.left(steps)) if steps > 0 else ""

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.status.hide()

    # the lines

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step:
            self.say(f"resuming after step {trainer.global_step}")
        if trainer.log_dir:
            self.say(f"run folder: {trainer.log_dir}")
        self.pace.start()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any, **__: Any) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        shown = [text.format(metrics[name]) for name, text in COLUMNS.items() if name in metrics]
        self.pace.step()
        self.say("  ".join(part for part in (f"step {self.step_name()}", *shown, self.time_left()) if part))
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
                by_name = {name: metrics.get(f"{prefix}/{who}{name}") for name in (*RATES, *SAMPLED)}
                shown = [f"{(RATES | SAMPLED)[name]} {float(v):.3f}" for name, v in by_name.items() if v is not None]
                if who and shown:
                    self.say(f"  {who.removesuffix('/')} alone: {', '.join(shown)}")
                elif by_name["avg_at_k"] is not None:
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
        last, step = int(self.history[-1][0]), trainer.global_step
        if last < step:
            self.say(f"not evaluated after step {last}: --trainer.val_check_interval={step} evaluates step {step}")

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print where the policy is. Checkpoint callbacks have saved the last step by now."""
        saved = [path for callback in trainer.checkpoint_callbacks for path in getattr(callback, "saved", [])]
        if saved:
            folder = saved[-1].with_suffix("")
            self.say(f"policy adapter: {folder}")
            self.say(f"next: lmix generate, evaluate or export with --adapters.policy={folder}")

    def say(self, line: str) -> None:
        if self.enabled:
            self.console.print(line, markup=False)
