"""The folder that a run writes to."""

import tempfile
from pathlib import Path

import lightning as L
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger


def run_folder(trainer: L.Trainer) -> Path:
    """The run's own folder for any logger, or the trainer's root folder without a logger.

    The value is broadcast from rank 0, so every rank must call it. Lightning's `trainer.log_dir` does not work here:
    with loggers such as W&B's it is shared by all runs.
    """
    folder = Path(trainer.default_root_dir)
    if trainer.loggers:
        logger = trainer.loggers[0]
        if isinstance(logger, TensorBoardLogger | CSVLogger):
            folder = Path(logger.log_dir)
        else:
            folder = Path(logger.save_dir or folder) / str(logger.name) / str(logger.version)
    return trainer.strategy.broadcast(folder)


def check_writable(folder: Path) -> None:
    """Check that a run can create its folder and write into it, before any model is loaded. Leaves nothing behind.

    Raises:
        ValueError: the folder can't be created or written to.
    """
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise ValueError(
            f"run folder {str(folder)!r} is not writable ({existing}: {error.strerror}): set trainer.logger.save_dir, "
            "or trainer.default_root_dir if there is no logger"
        ) from error
