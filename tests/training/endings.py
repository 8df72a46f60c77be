"""Ways in which a run ends before its time, named on the command line by tests."""

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


class Told(L.Callback):
    """The batch system's word to one rank, in the middle of a step."""

    def __init__(self, number: int = int(signal.SIGTERM), at_step: int = 1, rank: int = 0) -> None:
        self.number, self.at_step, self.rank = number, at_step, rank

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_rank == self.rank and trainer.global_step == self.at_step:
            os.kill(os.getpid(), self.number)
