"""Where a run writes."""

import tempfile
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


def check_writable(folder: Path) -> None:
    """See that a run can make its folder and write into it, before any model is loaded. Leaves nothing behind.

    Raises:
        ValueError: it can't.
    """
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise ValueError(
            f"run folder {str(folder)!r} can't be written to ({existing}: {error.strerror}): set "
            "trainer.logger.save_dir, or trainer.default_root_dir where there is no logger"
        ) from error
