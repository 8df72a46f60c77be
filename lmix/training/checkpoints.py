"""Checkpoints: adapters, optimiser, alpha and data position, each with the policy as a peft folder beside it."""

import errno
import io
import logging
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from lmix.files import whole_file
from lmix.rollout.sampler import SamplerLost
from lmix.training.run_folder import run_folder
from lmix.training.state import check_fresh, named_step

log = logging.getLogger(__name__)


@contextmanager
def naming_last_checkpoint(module: L.LightningModule) -> Iterator[None]:
    """Add the checkpoint to resume from to the message of a `SamplerLost`, and re-raise it."""
    try:
        yield
    except SamplerLost as error:
        saved = [path for callback in module.trainer.checkpoint_callbacks for path in getattr(callback, "saved", [])]
        after = f"resume with --ckpt_path={saved[-1]}" if saved else "no checkpoint was saved yet: start the run again"
        raise SamplerLost(f"{error}; {after}") from error


class WholeCheckpointIO(TorchCheckpointIO):
    """Atomic checkpoint writes: a file gets its name once it is completely on disk.

    torch writes a zip file, which has its own checksums.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        content = io.BytesIO()  # torch's own file writer does not report a full disk
        torch.save(checkpoint, content)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with whole_file(Path(path), binary=True) as file:
            file.write(content.getbuffer())


class PolicyCheckpoint(Checkpoint):
    """Save `checkpoints/step=N.ckpt` in the run folder, to resume from with `--ckpt_path`, and `step=N/` for peft.

    Files are written atomically, at the end of a step: after the other callbacks, so that their changes (alpha) are
    saved, and after an evaluation that is due, so that a resumed run does not skip it. A run that SIGTERM ends
    (`lmix.training.preemption`) saves its last step.

    With `monitor`, the best evaluated step is also saved, even when no checkpoint is due, and is kept until a better
    one is saved. The links `best.ckpt` and `best/` point to it. Resuming from the run folder still uses the newest.
    The step is selected on the `data.eval_size` held-out problems, so its rate on them is an optimistic estimate.

    Args:
        every_n_steps: outer steps between checkpoints; the last step is always saved.
        keep: how many of the newest checkpoints to keep; -1 keeps all.
        monitor: a metric that evaluations log, such as val/solve_rate; null keeps only the newest.
        mode: whether the largest or the smallest value of `monitor` is the best. On a tie the earliest step is kept.

    Raises:
        ValueError: `every_n_steps` is below 1, `keep` is 0, or `mode` is unknown; during the run, `monitor` is not
            logged.
        OSError: a checkpoint can't be written (for example, the disk is full). Earlier checkpoints are not touched.
    """

    def __init__(
        self, every_n_steps: int = 10, keep: int = 3, monitor: str | None = None, mode: Literal["max", "min"] = "max"
    ) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, not {every_n_steps}")
        if keep == 0 or keep < -1:
            raise ValueError(f"keep must be -1 (all) or at least 1, not {keep}")
        if mode not in ("max", "min"):
            raise ValueError(f"mode must be max or min, not {mode!r}")
        self.every_n_steps, self.keep, self.monitor, self.mode = every_n_steps, keep, monitor, mode
        self.last_step: int | None = None
        self.saved: list[Path] = []
        self.best_model_path = ""
        """The best step's file, or empty. Lightning reads this attribute for `ckpt_path="best"`."""
        self.best_model_score: float | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        trainer.strategy.checkpoint_io = WholeCheckpointIO()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse a folder with another run's checkpoints, and rename those newer than the one being resumed."""
        self.last_step = None
        if trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
            return
        folder = self.folder(trainer)
        check_fresh(folder, trainer.ckpt_path, self.saved)
        if trainer.ckpt_path is not None and trainer.is_global_zero:
            step = named_step(Path(trainer.ckpt_path).resolve())  # best.ckpt is a link
            for path in folder.glob("*.ckpt"):
                if step is not None and (named_step(path) or 0) > step:
                    path.rename(path.with_suffix(".ckpt.abandoned"))
        if not Path(self.best_model_path).is_file():  # none yet, or deleted after the step being resumed
            self.best_model_path, self.best_model_score = "", None
        if trainer.is_global_zero:
            self.link_best(folder)

    def folder(self, trainer: L.Trainer) -> Path:
        return run_folder(trainer) / "checkpoints"

    def state_dict(self) -> dict[str, Any]:
        return {
            "saved": [str(path) for path in self.saved],
            "best_model_path": self.best_model_path,
            "best_model_score": self.best_model_score,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the list of saved checkpoints, so that a run resumed in the same folder goes on deleting old ones."""
        self.saved = [Path(path) for path in state_dict["saved"]]
        self.best_model_path = state_dict.get("best_model_path", "")
        self.best_model_score = state_dict.get("best_model_score")

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        loop = trainer.fit_loop.epoch_loop
        evaluation_due = loop._should_check_val_fx(trainer.fit_loop._data_fetcher)  # pyright: ignore  # no public way
        if self.due(trainer) and not evaluation_due:
            self.save(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        fitting = trainer.state.fn == "fit" and not trainer.sanity_checking
        if fitting:
            better = self.note_score(trainer)
            if better or self.due(trainer):
                self.save(trainer)

    def note_score(self, trainer: L.Trainer) -> bool:
        """Whether this step's evaluation is the best so far; if so, record it."""
        if self.monitor is None:
            return False
        if self.monitor not in trainer.callback_metrics:
            raise ValueError(
                f"PolicyCheckpoint.monitor {self.monitor!r} is not logged: use one of "
                f"{', '.join(sorted(trainer.callback_metrics))}"
            )
        score = float(trainer.callback_metrics[self.monitor])
        best = self.best_model_score
        if math.isnan(score) or (best is not None and not (score > best if self.mode == "max" else score < best)):
            return False
        self.best_model_path, self.best_model_score = str(self.path(trainer)), score
        return True

    def due(self, trainer: L.Trainer) -> bool:
        return trainer.global_step % self.every_n_steps == 0 or trainer.received_sigterm

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step:
            self.save(trainer)

    def save(self, trainer: L.Trainer) -> None:
        """Write the checkpoint of this step, once, and delete those beyond `keep`."""
        if self.last_step == trainer.global_step or trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
            return
        path, module = self.path(trainer), trainer.lightning_module
        self.saved = [*(old for old in self.saved if old.parent == path.parent and old != path), path]
        try:
            # the .ckpt file last, so that it never exists without its folder
            if trainer.is_global_zero:
                module.policy.save_policy(path.with_suffix(""), module.origin)  # pyright: ignore
            trainer.save_checkpoint(path)
        except OSError as error:
            before = "no earlier checkpoint exists"
            if len(self.saved) > 1:
                before = f"resume from {self.saved[-2]}, the last intact checkpoint"
            raise OSError(error.errno or errno.EIO, f"can't save {path} ({error}): {before}") from error
        self.last_step = trainer.global_step
        best = Path(self.best_model_path)
        if trainer.is_global_zero:
            self.link_best(path.parent)  # before the previous target may be deleted
        too_old = self.saved[: -self.keep] if self.keep > 0 else []
        for old in [path for path in too_old if path != best]:
            self.saved.remove(old)
            if trainer.is_global_zero:
                old.unlink(missing_ok=True)
                shutil.rmtree(old.with_suffix(""), ignore_errors=True)
        trainer.strategy.barrier()

    def path(self, trainer: L.Trainer) -> Path:
        return self.folder(trainer) / f"step={trainer.global_step:04d}.ckpt"

    def link_best(self, folder: Path) -> None:
        """Point `best.ckpt` and `best/` to the best step's checkpoint and peft folder, or remove them."""
        best = Path(self.best_model_path)
        here = best.name and best.parent == folder  # false if the run was resumed in another folder
        for link, target in ((folder / "best.ckpt", best.name), (folder / "best", best.stem)):
            if not here:
                if link.is_symlink():
                    link.unlink()
                continue
            part = folder / f".{link.name}.part"
            part.unlink(missing_ok=True)
            try:
                part.symlink_to(target)
            except OSError as error:  # a file system without symbolic links; the checkpoint itself is unaffected
                log.warning("can't create the link %s to the best checkpoint, %s (%s)", link, target, error)
                return
            os.replace(part, link)
