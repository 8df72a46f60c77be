"""Clean shutdown on SIGTERM: finish the current outer step, save a checkpoint, exit."""

import os
import signal
import threading
from types import FrameType
from typing import Any

import lightning as L


class Preemption(L.Callback):
    """On SIGTERM (a batch system's word before it kills), end after the outer step under way, saved by
    `PolicyCheckpoint`.

    All ranks decide together, between steps: Lightning's own handlers talk to other ranks, or save (SLURM's SIGUSR1),
    in the middle of whatever is under way, and what is saved in the middle of a step can't be gone on from exactly.
    They are replaced while a run trains. A step must fit into the time between the signal and the kill.
    """

    def __init__(self) -> None:
        self.asked = False

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the place of Lightning's handlers, in the first hook after it has put them up."""
        self.trainer = trainer
        self.asked = self.asked or trainer.received_sigterm  # it may have come a moment ago
        trainer._signal_connector.received_sigterm = False
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self.ask)  # Lightning puts back what was there before the run
            if "SLURM_JOB_ID" in os.environ:
                signal.signal(signal.SIGUSR1, self.ask)

    on_train_start = on_sanity_check_start  # there may have been no evaluation before the first step

    def ask(self, number: int, frame: FrameType | None) -> None:
        """Note the wish, and pass it on to ranks that this process has started."""
        launcher = self.trainer.strategy.launcher
        if launcher is not None and not self.asked:
            launcher.kill(signal.SIGTERM)  # pyright: ignore[reportAttributeAccessIssue]
        self.asked = True

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        if trainer.strategy.reduce_boolean_decision(self.asked, all=False):
            # Lightning leaves its loop by it, after the evaluation where one is due
            trainer._signal_connector.received_sigterm = True
