"""A rank that dies, named on the command line by test_ranks.py."""

import os
import signal

import lightning as L


class Dying(L.Callback):
    """Kill rank 1 when a step begins, as the system does where memory runs out."""

    def __init__(self, at_step: int) -> None:
        self.at_step = at_step

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_rank == 1 and trainer.global_step == self.at_step:
            os.kill(os.getpid(), signal.SIGKILL)
