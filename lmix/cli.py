"""The front door: `python -m lmix fit --config ...`, a LightningCLI whose errors are one line."""

import logging
import os
import sys
import warnings
from typing import Any

# a run needs no hub: what it fetches it asks for by name, and counts of downloads are nobody's business
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

DEFAULTS = {
    "enable_progress_bar": True,
    "enable_model_summary": False,
    "max_epochs": -1,
    "max_steps": 40,
    "num_sanity_val_steps": -1,  # the whole held-out set before the first step: the value at step 0
    "val_check_interval": 10,
    "check_val_every_n_epoch": None,
    "log_every_n_steps": 1,
    "accelerator": "auto",
    "devices": 1,
}


def main(args: list[str] | None = None) -> int:
    """Parse, check, run. Returns the exit status: 0, 1 for a user's mistake."""
    from lightning.pytorch.cli import LightningCLI

    from lmix.data.module import RLDataModule

    quieten()

    class Door(LightningCLI):
        def add_arguments_to_parser(self, parser: Any) -> None:
            parser.set_defaults({"model": {"class_path": "lmix.GRPOModule"}})

    try:
        import lightning as L

        Door(
            L.LightningModule,
            RLDataModule,
            subclass_mode_model=True,
            seed_everything_default=0,
            trainer_defaults=DEFAULTS | {"callbacks": default_callbacks(), "logger": default_logger()},
            save_config_kwargs={"overwrite": True},
            args=args,
        )
    except ValueError as error:
        print(f"lmix: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def default_callbacks() -> list[Any]:
    from lmix.training.checkpoints import PolicyCheckpoint
    from lmix.training.completion_log import CompletionLog
    from lmix.training.console import StepConsole

    return [StepConsole(), CompletionLog(), PolicyCheckpoint()]


def default_logger() -> dict[str, Any]:
    return {
        "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
        "init_args": {"save_dir": "runs", "name": "lmix"},
    }


def quieten() -> None:
    """Leave out what lmix knows and users can't change."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*is_leaf.*")
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    known = (
        ".*in eval mode at the start of training.*",  # the backbone has no dropout, so it has no training mode
        ".*does not have many workers.*",  # batches are lists that are in memory already
        ".*is_gradient_checkpointing.*",
    )
    for message in known:
        warnings.filterwarnings("ignore", message)
