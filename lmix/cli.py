"""The front door: `python -m lmix fit --config ...`, a LightningCLI whose errors are one line."""

import errno
import logging
import os
import re
import signal
import sys
import warnings
from argparse import ArgumentParser
from importlib import import_module
from pathlib import Path
from typing import Any

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


NOT_OURS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM}
"""What a disk may say that no code can mend."""

CONFIG_FLAGS = ("--config", "-c")
CONFIGS = Path(__file__).parent / "configs"
"""lmix's own, in a checkout and in an installed package."""

DESCRIPTION = """Reinforcement learning with logit averaging.
Start with: fit --config lmix:demo (lmix: names one of lmix's own configs). Settings: fit --model.help=lmix.GRPOModule,
fit --model.help=lmix.SFTModule, fit --data.task.help=lmix.tasks.MathTask (or CnK12Task, MMLUTask, ArithmeticTask,
DatasetTask). Other commands, each with --help: {others}."""


def main(args: list[str] | None = None) -> int:
    """Parse, check, run. Returns the exit status: 0, 1 for a user's mistake, 143 for a run that was told to end."""
    from jsonargparse import ArgumentError, set_parsing_settings
    from lightning.fabric.utilities.exceptions import MisconfigurationException
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
    except (ValueError, ArgumentError, MisconfigurationException) as error:
        print(f"lmix: error: {one_line(str(error))}", file=sys.stderr)
        return 1
    except SIGTERMException:
        if rank_zero_only.rank:  # type: ignore[attr-defined]
            return 0  # a launcher would take another status for a failure, and kill the rest
        print("lmix: told to end: the last step is saved; go on by --ckpt_path and the run's folder", file=sys.stderr)
        return 128 + signal.SIGTERM
    except OSError as error:
        if error.errno not in NOT_OURS:
            raise
        place = f": {error.filename}" if error.filename else ""
        print(f"lmix: error: {one_line(str(error.strerror))}{place}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        if not is_lost_rank(error):
            raise
        print(
            f"lmix: error: another rank has ended ({one_line(str(error))}): its own message says why; go on from the "
            "last checkpoint by --ckpt_path",
            file=sys.stderr,
        )
        return 1
    return 0


def is_lost_rank(error: RuntimeError) -> bool:
    """Whether a collective failed because a rank was not there any more, by what gloo and NCCL say then."""
    lost = r"gloo.*(closed|reset|timed out)|Connection (closed|reset) by peer|remote process exited"
    return re.search(lost, str(error), re.IGNORECASE | re.DOTALL) is not None


def run_function(command: str, args: list[str]) -> None:
    """Run a command that is a plain function; its parameters are its flags."""
    from jsonargparse import auto_cli

    function = getattr(import_module(FUNCTIONS[command]), command)
    auto_cli(function, args=args, as_positional=False, exit_on_error=False, prog=f"python -m lmix {command}")


def run_report(args: list[str]) -> None:
    """Write tables and figures of runs."""
    from lmix.report import write_report

    parser = ArgumentParser(prog="python -m lmix report", description="Write tables and figures of runs.")
    parser.add_argument("folders", nargs="+", type=Path, help="run folders, and folders of sweep and compare")
    parser.add_argument("--out", type=Path, default=Path("report"), help="folder for report.md, CSV, PNG and SVG")
    parser.add_argument("--title", default="lmix report", help="heading of report.md")
    settings = parser.parse_args(args)
    print(write_report(settings.folders, settings.out, settings.title))


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
    args = with_own_configs(args)
    import lightning as L
    from lightning.pytorch.cli import LightningCLI

    from lmix.data.module import RLDataModule
    from lmix.training.run_folder import run_folder
    from lmix.training.state import check_fresh, find_checkpoint
    from lmix.training.strategies import check_strategy

    class Door(LightningCLI):
        def add_arguments_to_parser(self, parser: Any) -> None:
            parser.set_defaults({"model": {"class_path": "lmix.GRPOModule"}})

        def parse_arguments(self, parser: Any, args: Any) -> None:
            super().parse_arguments(parser, args)
            settings = self.config[self.config["subcommand"]]
            if path := settings.get("ckpt_path"):
                settings["ckpt_path"] = find_checkpoint(path)

        def _instantiate_trainer(self, config: Any, callbacks: list[Any]) -> L.Trainer:
            """Add the default callbacks; one that the user configures takes the place of the default of its kind."""
            given = config.get("callbacks") or []
            kinds = [type(callback) for callback in (given if isinstance(given, list) else [given])]
            self.trainer_defaults["callbacks"] = [c for c in default_callbacks() if type(c) not in kinds]
            return super()._instantiate_trainer(config, callbacks)

        def _run_subcommand(self, subcommand: str) -> None:
            check_strategy(self.trainer.strategy)  # before a launcher makes processes, whose errors are tracebacks
            if subcommand == "fit" and start and not self.trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
                settings = self.config[subcommand]
                check_fresh(run_folder(self.trainer) / "checkpoints", settings.get("ckpt_path"))
            if start:
                super()._run_subcommand(subcommand)

    others = ", ".join([*FUNCTIONS, "report", "plan"])
    return Door(
        L.LightningModule,
        RLDataModule,
        subclass_mode_model=True,
        auto_configure_optimizers=False,  # model.optimizer has it
        seed_everything_default=0,
        trainer_defaults=DEFAULTS | {"logger": default_logger()},
        save_config_kwargs={"overwrite": True},
        parser_kwargs={
            "exit_on_error": False,
            "prog": "python -m lmix",
            "description": DESCRIPTION.format(others=others),
            **{name: {"exit_on_error": False} for name in COMMANDS},
        },
        args=args,
    )


def with_own_configs(args: list[str]) -> list[str]:
    """Put the file's path where `--config` or `-c` names one of lmix's own: `lmix:demo`, `lmix:methods/fixed`.

    Raises:
        ValueError: there is no such config.
    """
    found = list(args)
    for place, (before, arg) in enumerate(zip(["", *args], args, strict=False)):
        flag, equals, value = ("", "", arg) if before in CONFIG_FLAGS else arg.partition("=")
        if not value.startswith("lmix:") or flag not in ("", *CONFIG_FLAGS):
            continue
        names = [path.relative_to(CONFIGS).with_suffix("").as_posix() for path in sorted(CONFIGS.rglob("*.yaml"))]
        if (name := value.removeprefix("lmix:").removesuffix(".yaml")) not in names:
            raise ValueError(f"config {value!r} is unknown: use one of {', '.join(names)}")
        found[place] = f"{flag}{equals}{CONFIGS / name}.yaml"
    return found


def one_line(message: str) -> str:
    """A parser's message, which lists all that it tried, cut to the one line that tells a user what to mend."""
    if "Errors:" in message:
        before, _, after = message.partition("Errors:")
        tried, _, given = after.partition("Given value type:")
        reasons = [reason.strip() for reason in re.split(r"\n\s*- ", tried)]
        first, *others = [reason for reason in reasons if reason and "NoneType" not in reason] or [message]
        message = f"{first} {others[-1]}" if first.endswith(":") and others else first  # a field, then what is wrong
        if message.startswith("Expected a <class") and "value" not in message:  # names neither field nor value
            value = given.partition("Given value:")[2].strip()
            field = ".".join(re.findall(r'key "([^"]+)"', before))
            message = f"{field + ': ' if field else ''}{message}, not {value}"
            if value.startswith("{"):
                message += " (a text with a colon needs quotes of its own, as YAML does)"
    line = " ".join(message.split())
    if re.search(r"not accepted|unrecognized arguments|not expected", line):
        line += " (--print_config shows the fields there are)"
    return line


def default_callbacks() -> list[Any]:
    from lmix.training.checkpoints import PolicyCheckpoint
    from lmix.training.completion_log import CompletionLog
    from lmix.training.console import StepConsole
    from lmix.training.preemption import Preemption

    return [StepConsole(), CompletionLog(), Preemption(), PolicyCheckpoint()]


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
