"""Clean shutdown on SIGTERM: finish the current outer step, save a checkpoint, exit."""

import os
import signal
import threading
from types import FrameType
from typing import Any

import lightning as L


class Preemption(L.Callback):
    """On SIGTERM (which batch systems send before they kill a job), end the run after the current outer step.

    `PolicyCheckpoint` saves that step. All ranks decide together, between steps. Lightning's own handlers would
    communicate with other ranks, or save a checkpoint (SLURM's SIGUSR1), in the middle of a step, and such a checkpoint
    can't be resumed exactly. They are replaced while a run trains. A step must fit into the time between the signal
    and the kill.
    """

    def __init__(self) -> None:
        self.asked = False

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Replace Lightning's signal handlers, in the first hook after it has installed them."""
        self.trainer = trainer
        self.asked = self.asked or trainer.received_sigterm  # the signal may have arrived before this hook
        trainer._signal_connector.received_sigterm = False
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self.ask)  # Lightning restores the original handlers after the run
            if "SLURM_JOB_ID" in os.environ:
                signal.signal(signal.SIGUSR1, self.ask)

    on_train_start = on_sanity_check_start  # for runs without a sanity check

    def ask(self, number: int, frame: FrameType | None) -> None:
        """Record the signal, and forward it to ranks that this process has started."""
        launcher = self.trainer.strategy.launcher
        if launcher is not None and not self.asked:
            launcher.kill(signal.SIGTERM)  # pyright: ignore[reportAttributeAccessIssue]
        self.asked = True

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        if trainer.strategy.reduce_boolean_decision(self.asked, all=False):
            # makes Lightning leave its loop, after an evaluation that is due
            trainer._signal_connector.received_sigterm = True
