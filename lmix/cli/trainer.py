"""Lightning's commands (`fit`, `validate`, `test`, `predict`) with LightningCLI and lmix's defaults and checks."""

from typing import Any

from lmix.cli.config_files import with_config_files
from lmix.cli.messages import settings_errors

DEFAULTS = {
    "enable_progress_bar": True,
    "enable_model_summary": False,
    "max_epochs": -1,
    "max_steps": 40,
    "num_sanity_val_steps": -1,  # evaluate the whole held-out set before the first step, for the value at step 0
    "val_check_interval": 10,
    "check_val_every_n_epoch": None,
    "log_every_n_steps": 1,
    "accelerator": "auto",
    "devices": 1,
}

COMMANDS = ("fit", "validate", "test", "predict")


def run_trainer(args: list[str], start: bool = True) -> Any:
    """Run one of Lightning's commands; without `start`, only create its parts. Returns the LightningCLI."""
    args = with_config_files(args)
    import lightning as L
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from lmix.cli.parser import ExactParser
    from lmix.data.module import RLDataModule
    from lmix.training.default_callbacks import default_callbacks
    from lmix.training.run_config import SaveRunConfig
    from lmix.training.run_folder import check_writable, run_folder
    from lmix.training.state import check_fresh, find_checkpoint
    from lmix.training.strategies import check_strategy
    from lmix.training.trainer_flags import check_trainer_flags

    class RunParser(ExactParser, LightningArgumentParser):
        pass

    class RunCLI(LightningCLI):
        def add_arguments_to_parser(self, parser: Any) -> None:
            parser.set_defaults({"model": {"class_path": "lmix.GRPOModule"}})

        def parse_arguments(self, parser: Any, args: Any) -> None:
            super().parse_arguments(parser, args)
            settings = self.config[self.config["subcommand"]]
            if path := settings.get("ckpt_path"):
                settings["ckpt_path"] = find_checkpoint(path)

        def _instantiate_trainer(self, config: Any, callbacks: list[Any]) -> L.Trainer:
            check_trainer_flags(**config)
            given = config.get("callbacks") or []
            self.trainer_defaults["callbacks"] = default_callbacks(
                given if isinstance(given, list) else [given],
                config["enable_progress_bar"],
                config["enable_checkpointing"] is not False,
            )
            with settings_errors("trainer"):
                return super()._instantiate_trainer(config, callbacks)

        def _run_subcommand(self, subcommand: str) -> None:
            check_strategy(self.trainer.strategy)  # before processes are launched, whose errors would be tracebacks
            if not start:
                return
            folder = "RUN_FOLDER"  # a fast_dev_run has none
            if not self.trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
                folder = run_folder(self.trainer)
                if self.trainer.is_global_zero:
                    check_writable(folder)
                if subcommand == "fit":
                    check_fresh(folder / "checkpoints", self.config[subcommand].get("ckpt_path"))
            # read the data now: Lightning starts the logger, which creates the run folder, before it calls `setup`
            self.datamodule.tokenizer = self.datamodule.tokenizer or getattr(self.model, "tokenizer", None)
            self.datamodule.setup(subcommand)
            try:
                super()._run_subcommand(subcommand)
            except SIGTERMException as error:  # a subclass of SystemExit, which Lightning also raises for Ctrl-C
                saved = f"the last step is saved: resume with --ckpt_path={folder}"
                without = "no checkpoint was saved, because trainer.enable_checkpointing is false"
                ending = saved if self.trainer.checkpoint_callbacks else without
                raise SIGTERMException(f"ended by SIGTERM: {ending}") from error
            except SystemExit:
                if self.trainer.interrupted:
                    raise KeyboardInterrupt from None
                raise

    return RunCLI(
        L.LightningModule,
        RLDataModule,
        parser_class=RunParser,
        subclass_mode_model=True,
        auto_configure_optimizers=False,  # model.optimizer configures it
        seed_everything_default=0,
        trainer_defaults=DEFAULTS | {"logger": default_logger()},
        save_config_callback=SaveRunConfig,
        save_config_kwargs={"save_to_log_dir": False},
        parser_kwargs={
            "exit_on_error": False,
            "prog": "python -m lmix",
            "description": "Reinforcement learning with logit averaging. `lmix --help` lists all commands.",
            **{name: {"exit_on_error": False} for name in COMMANDS},
        },
        args=args,
    )


def default_logger() -> dict[str, Any]:
    return {
        "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
        "init_args": {"save_dir": "runs", "name": "lmix"},
    }
