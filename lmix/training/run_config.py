"""The run's settings, written to the run folder and passed to its loggers."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from torch.utils.tensorboard.summary import hparams

from lmix.training.run_folder import run_folder

FINAL_METRICS = ("val/solve_rate", "val/answer_rate", "val/format_rate", "val/right_anywhere_rate")
"""Metric columns of TensorBoard's HParams tab, which shows the latest value of each."""


class SaveRunConfig(SaveConfigCallback):
    """Write `config.yaml` into the run's own folder, and log all settings as hyper-parameters.

    Lightning's class writes into `trainer.log_dir`, which loggers such as W&B share among runs. Checkpoints contain no
    hyper-parameters, because LightningCLI would let them override the command line when a run is resumed.
    """

    folder: Path

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.folder = run_folder(trainer)  # a broadcast; `save_config` runs on rank 0 alone
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.parser.save(self.config, str(self.folder / self.config_filename), skip_none=False, overwrite=True)
        if stage == "fit":
            settings = dict(flat_settings(json.loads(self.parser.dump(self.config, format="json"))))
            for logger in trainer.loggers:
                log_settings(logger, settings)


def flat_settings(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, bool | int | float | str]]:
    """Flatten a parsed configuration into (name, value) pairs, named as on the command line: `model.sampling.slots`.

    The value of a class setting is its class path. Lists become JSON. Settings that are null are left out.
    """
    for name, value in config.items():
        key = f"{prefix}.{name}" if prefix else name
        if isinstance(value, Mapping) and "class_path" in value:
            yield key, value["class_path"]
            value = value.get("init_args") or {}
        if isinstance(value, Mapping):
            yield from flat_settings(value, key)
        elif isinstance(value, list):
            yield key, json.dumps(value)
        elif value is not None:
            yield key, value


def log_settings(logger: Logger, settings: Mapping[str, Any]) -> None:
    """Log hyper-parameters with any logger; for TensorBoard, with the final metrics as columns.

    Lightning's `TensorBoardLogger.log_hyperparams` would also log a value for each metric (at step 0, or `hp_metric`
    -1). The tab needs only the metrics' names, and then shows the values that the run logs.
    """
    if not isinstance(logger, TensorBoardLogger):
        logger.log_hyperparams(dict(settings))
        return
    logger.hparams.update(settings)  # for hparams.yaml
    for summary in hparams(dict(settings), dict.fromkeys(FINAL_METRICS, 0.0)):
        logger.experiment._get_file_writer().add_summary(summary)
