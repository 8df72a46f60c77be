"""The front door: `python -m lmix fit --config ...`, a LightningCLI whose errors are one line."""

import logging
import os
import signal
import sys
import warnings
from argparse import ArgumentParser
from importlib import import_module
from pathlib import Path
from typing import Any

from lmix.config_files import with_config_files
from lmix.errors import explain, settings_errors

# a run needs no hub: what it fetches it asks for by name, and counts of downloads are nobody's business
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# torch's: large tensors of a CPU in huge pages (Linux), which saves 4 to 7 % of a step there
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

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


COMMANDS = ("fit", "validate", "test", "predict")
FUNCTIONS = {
    "evaluate": "lmix.evaluation.evaluate",
    "sweep": "lmix.evaluation.sweep",
    "compare": "lmix.evaluation.compare",
    "generate": "lmix.inspection.generate",
    "export": "lmix.inspection.export",
}
"""Commands that are plain functions of that name, and where they live."""


DESCRIPTION = """Reinforcement learning with logit averaging.
Start with: fit --config lmix:demo (lmix: names one of lmix's own configs). Settings: fit --model.help=lmix.GRPOModule,
fit --model.help=lmix.SFTModule, fit --data.task.help=lmix.tasks.MathTask (or CnK12Task, MMLUTask, ArithmeticTask,
DatasetTask). Other commands, each with --help: {others}."""


def main(args: list[str] | None = None) -> int:
    """Parse, check, run. Returns the exit status: 0, 1 for a user's mistake, 130 and 143 for SIGINT and SIGTERM."""
    from jsonargparse import set_parsing_settings
    from lightning.fabric.utilities.rank_zero import rank_zero_only
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    args = sys.argv[1:] if args is None else args
    if os.getcwd() not in sys.path:  # a user's own classes, as `python -m lmix` finds them
        sys.path.insert(0, os.getcwd())
    quieten()
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    try:
        if args and args[0] in FUNCTIONS:
            run_function(args[0], args[1:])
        elif args and args[0] == "report":
            run_report(args[1:])
        elif args and args[0] == "plan":
            run_plan(args[1:])
        else:
            run_trainer(args)
    except SIGTERMException as error:
        if rank_zero_only.rank:  # type: ignore[attr-defined]
            return 0  # a launcher would take another status for a failure, and kill the rest
        print(f"lmix: {error}", file=sys.stderr)
        return 128 + signal.SIGTERM
    except KeyboardInterrupt:
        if not rank_zero_only.rank:  # type: ignore[attr-defined]
            print("lmix: interrupted; a run resumes from its newest checkpoint by --ckpt_path", file=sys.stderr)
        return 128 + signal.SIGINT
    except Exception as error:
        if (line := explain(error, args)) is None:
            raise
        print(f"lmix: error: {line}", file=sys.stderr)
        return 1
    return 0


def run_function(command: str, args: list[str]) -> None:
    """Run a command that is a plain function; its parameters are its flags."""
    from jsonargparse import auto_cli

    function = getattr(import_module(FUNCTIONS[command]), command)
    auto_cli(function, args=args, as_positional=False, exit_on_error=False, prog=f"python -m lmix {command}")


def run_report(args: list[str]) -> None:
    """Write tables and figures of runs."""
    from lmix.report import write_report

    settings = report_parser().parse_args(args)
    print(write_report(settings.folders, settings.out, settings.title))


def report_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m lmix report", description="Write tables and figures of runs.")
    parser.add_argument("folders", nargs="+", type=Path, help="run folders, and folders of sweep and compare")
    parser.add_argument("--out", type=Path, default=Path("report"), help="folder for report.md, CSV, PNG and SVG")
    parser.add_argument("--title", default="lmix report", help="heading of report.md")
    return parser


def run_plan(args: list[str]) -> None:
    """Say what a run would need: the flags of `fit`, and those of the devices."""
    from lmix.planning import plan
    from lmix.training.strategies import ShardedStrategy

    parser = ArgumentParser(
        prog="python -m lmix plan",
        description="Memory and time of a run before it is started. Takes the flags of `fit` beside these.",
    )
    parser.add_argument("--prompt_tokens", type=int, default=256, help="tokens of the longest prompt")
    parser.add_argument("--device_gb", type=float, default=80.0, help="memory of a device, GB")
    parser.add_argument("--tflops", type=float, default=300.0, help="its products, 10^12 a second, large matrices")
    parser.add_argument("--bandwidth", type=float, default=2000.0, help="its memory's, GB a second")
    parser.add_argument("--live", type=float, default=1.0, help="part of the groups that are live")
    settings, others = parser.parse_known_args(args)
    # as if on CPUs: the devices that are planned for need not be here
    trainer_cli = run_trainer(["fit", *others, "--trainer.accelerator=cpu"], start=False)
    trainer = trainer_cli.trainer
    sharded = isinstance(trainer.strategy, ShardedStrategy)
    devices = trainer.num_devices * trainer.num_nodes
    print(plan(trainer_cli.model, trainer_cli.datamodule, devices, sharded, **vars(settings)))


def run_trainer(args: list[str], start: bool = True) -> Any:
    """Run one of Lightning's commands, or make its parts only; gives the LightningCLI."""
    args = with_config_files(args)
    import lightning as L
    from lightning.pytorch.cli import LightningCLI
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from lmix.data.module import RLDataModule
    from lmix.training.default_callbacks import default_callbacks
    from lmix.training.run_config import SaveRunConfig
    from lmix.training.run_folder import check_writable, run_folder
    from lmix.training.state import check_fresh, find_checkpoint
    from lmix.training.strategies import check_strategy
    from lmix.training.trainer_flags import check_trainer_flags

    class Door(LightningCLI):
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
            check_strategy(self.trainer.strategy)  # before a launcher makes processes, whose errors are tracebacks
            if not start:
                return
            if not self.trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
                folder = run_folder(self.trainer)
                if self.trainer.is_global_zero:
                    check_writable(folder)
                if subcommand == "fit":
                    check_fresh(folder / "checkpoints", self.config[subcommand].get("ckpt_path"))
            try:
                super()._run_subcommand(subcommand)
            except SIGTERMException as error:  # a SystemExit, as what Lightning makes of Ctrl-C
                saved = "its step is saved, resume by --ckpt_path and the run folder"
                without = "no checkpoint was saved, as trainer.enable_checkpointing is false"
                ending = saved if self.trainer.checkpoint_callbacks else without
                raise SIGTERMException(f"ended by SIGTERM: {ending}") from error
            except SystemExit:
                if self.trainer.interrupted:
                    raise KeyboardInterrupt from None
                raise

    others = ", ".join([*FUNCTIONS, "report", "plan"])
    return Door(
        L.LightningModule,
        RLDataModule,
        subclass_mode_model=True,
        auto_configure_optimizers=False,  # model.optimizer has it
        seed_everything_default=0,
        trainer_defaults=DEFAULTS | {"logger": default_logger()},
        save_config_callback=SaveRunConfig,
        save_config_kwargs={"save_to_log_dir": False},
        parser_kwargs={
            "exit_on_error": False,
            "prog": "python -m lmix",
            "description": DESCRIPTION.format(others=others),
            **{name: {"exit_on_error": False} for name in COMMANDS},
        },
        args=args,
    )


def default_logger() -> dict[str, Any]:
    return {
        "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
        "init_args": {"save_dir": "runs", "name": "lmix"},
    }


def quieten() -> None:
    """Leave out what lmix knows and users can't change."""
    import lightning.pytorch  # noqa: F401  # it sets its own log level when it is imported
    import transformers.utils.logging

    if not sys.stderr.isatty():  # bars are for people; a log wants lines
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        transformers.utils.logging.disable_progress_bar()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*is_leaf.*")
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric.strategies.launchers").setLevel(logging.INFO)  # says which rank has died
    known = (
        ".*in eval mode at the start of training.*",  # the backbone has no dropout, so it has no training mode
        ".*does not have many workers.*",  # batches are lists that are in memory already
        ".*is_gradient_checkpointing.*",
        ".*args parameter is intended.*",
    )
    for message in known:
        warnings.filterwarnings("ignore", message)
