"""Checkpoints of a run: adapters, optimiser, alpha and position, each with the policy as a peft folder beside it."""

import errno
import io
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from lmix.files import whole_file
from lmix.training.run_folder import run_folder
from lmix.training.state import check_fresh, named_step


class WholeCheckpointIO(TorchCheckpointIO):
    """Files that have their name when all of them is on the disk. A zip, as torch writes it, has its own checksums."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        content = io.BytesIO()  # torch's own writer says nothing of a full disk
        torch.save(checkpoint, content)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with whole_file(Path(path), binary=True) as file:
            file.write(content.getbuffer())


class PolicyCheckpoint(Checkpoint):
    """Save `checkpoints/step=N.ckpt` in the run folder, to go on from with `--ckpt_path`, and `step=N/` for peft.

    A file has its name only when it is whole. It is written after all that belongs to its step: after other callbacks,
    so that what they changed (alpha) is in it, and after the evaluation where one is due, so that a run that goes on
    from it lacks none. A run that was told to end (`lmix.training.preemption`) saves the step that it ends with.

    Args:
        every_n_steps: outer steps between checkpoints; the last step is saved in any case.
        keep: how many of the newest stay; -1 keeps all.

    Raises:
        ValueError: `every_n_steps` below 1, or `keep` of 0.
        OSError: a checkpoint can't be written (a full disk); those before it are there.
    """

    def __init__(self, every_n_steps: int = 10, keep: int = 3) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, not {every_n_steps}")
        if keep == 0 or keep < -1:
            raise ValueError(f"keep must be -1 (all) or at least 1, not {keep}")
        self.every_n_steps, self.keep = every_n_steps, keep
        self.last_step: int | None = None
        self.saved: list[Path] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        trainer.strategy.checkpoint_io = WholeCheckpointIO()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the checkpoints of another run alone, and set aside those after the one that is gone on from."""
        self.last_step = None
        folder = self.folder(trainer)
        check_fresh(folder, trainer.ckpt_path, self.saved)
        if trainer.ckpt_path is not None and trainer.is_global_zero:
            step = named_step(Path(trainer.ckpt_path))
            for path in folder.glob("*.ckpt"):
                if step is not None and (named_step(path) or 0) > step:
                    path.rename(path.with_suffix(".ckpt.abandoned"))

    def folder(self, trainer: L.Trainer) -> Path:
        return run_folder(trainer) / "checkpoints"

    def state_dict(self) -> dict[str, Any]:
        return {"saved": [str(path) for path in self.saved]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Of a run that goes on in the same folder, older checkpoints are still this one's to drop."""
        self.saved = [Path(path) for path in state_dict["saved"]]

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        loop = trainer.fit_loop.epoch_loop
        evaluation_due = loop._should_check_val_fx(trainer.fit_loop._data_fetcher)  # pyright: ignore  # no public way
        if self.due(trainer) and not evaluation_due:
            self.save(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        fitting = trainer.state.fn == "fit" and not trainer.sanity_checking
        if fitting and self.due(trainer):
            self.save(trainer)

    def due(self, trainer: L.Trainer) -> bool:
        return trainer.global_step % self.every_n_steps == 0 or trainer.received_sigterm

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step:
            self.save(trainer)

    def save(self, trainer: L.Trainer) -> None:
        """Write the checkpoint of this step, once, and drop what is too old."""
        if self.last_step == trainer.global_step or trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
            return
        folder = self.folder(trainer)
        path = folder / f"step={trainer.global_step:04d}.ckpt"
        self.saved = [*(old for old in self.saved if old.parent == folder and old != path), path]
        try:
            # the file last: where it is, its folder is
            if trainer.is_global_zero:
                trainer.lightning_module.policy.save_policy(path.with_suffix(""))  # pyright: ignore
            trainer.save_checkpoint(path)
        except OSError as error:
            before = (
                f"go on from {self.saved[-2]}, which is whole" if len(self.saved) > 1 else "there is none before it"
            )
            raise OSError(error.errno or errno.EIO, f"{path} can't be saved ({error}): {before}") from error
        self.last_step = trainer.global_step
        while 0 < self.keep < len(self.saved):
            old = self.saved.pop(0)
            if trainer.is_global_zero:
                old.unlink(missing_ok=True)
                shutil.rmtree(old.with_suffix(""), ignore_errors=True)
        trainer.strategy.barrier()
