"""Where a run writes."""

from pathlib import Path

import lightning as L
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger


def run_folder(trainer: L.Trainer) -> Path:
    """The run's own folder, with any logger; without one, the trainer's root. Every rank must ask: rank 0 says it.

    Lightning's `trainer.log_dir` is a folder that all runs share with loggers such as W&B's.
    """
    folder = Path(trainer.default_root_dir)
    if trainer.loggers:
        logger = trainer.loggers[0]
        if isinstance(logger, TensorBoardLogger | CSVLogger):
            folder = Path(logger.log_dir)
        else:
            folder = Path(logger.save_dir or folder) / str(logger.name) / str(logger.version)
    return trainer.strategy.broadcast(folder)
