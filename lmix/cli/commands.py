"""The command line `python -m lmix COMMAND ...`. A user's mistake is reported in one line, without a traceback."""

import os
import signal
import sys
from argparse import ArgumentParser
from importlib import import_module
from pathlib import Path
from typing import Any

from lmix.cli.environment import quieten
from lmix.cli.messages import explain
from lmix.cli.overview import check_command, information
from lmix.cli.trainer import run_trainer
from lmix.cli.yaml_values import set_value_loader

FUNCTIONS = {
    "evaluate": "lmix.evaluation.evaluate",
    "sweep": "lmix.evaluation.sweep",
    "compare": "lmix.evaluation.compare",
    "audit": "lmix.evaluation.audit",
    "power": "lmix.report.power",
    "generate": "lmix.inspection.generate",
    "export": "lmix.inspection.export",
    "delta": "lmix.inspection.delta",
    "merge": "lmix.inspection.merge",
    "rewards": "lmix.inspection.rewards",
}
"""Commands that are plain functions: name -> module."""


def main(args: list[str] | None = None) -> int:
    """Run a command. Returns the exit status: 0, 1 for a user's mistake, 130 for SIGINT, 143 for SIGTERM."""
    args = sys.argv[1:] if args is None else args
    if (text := information(args)) is not None:  # before the imports, which take seconds
        print(text)
        return 0
    from jsonargparse import set_parsing_settings
    from lightning.fabric.utilities.rank_zero import rank_zero_only
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    if os.getcwd() not in sys.path:  # so that the command `lmix`, like `python -m lmix`, finds a user's own classes
        sys.path.insert(0, os.getcwd())
    quieten()
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    set_value_loader()
    try:
        check_command(args[0])
        if args[0] in FUNCTIONS:
            run_function(args[0], args[1:])
        elif args[0] == "report":
            run_report(args[1:])
        elif args[0] == "plan":
            run_plan(args[1:])
        else:
            run_trainer(args)
    except SIGTERMException as error:
        if rank_zero_only.rank:  # type: ignore[attr-defined]
            return 0  # a launcher would take any other status as a failure, and kill the other ranks
        print(f"lmix: {error}", file=sys.stderr)
        return 128 + signal.SIGTERM
    except KeyboardInterrupt:
        if not rank_zero_only.rank:  # type: ignore[attr-defined]
            print("lmix: interrupted; resume the run from its newest checkpoint with --ckpt_path", file=sys.stderr)
        return 128 + signal.SIGINT
    except Exception as error:
        if (line := explain(error, args)) is None:
            raise
        print(f"lmix: error: {line}", file=sys.stderr)
        return 1
    return 0


def run_function(command: str, args: list[str]) -> None:
    """Run a command that is a plain function, whose parameters are its flags."""
    from jsonargparse import auto_cli

    from lmix.cli.parser import ExactParser

    function = getattr(import_module(FUNCTIONS[command]), command)
    auto_cli(
        function,
        args=args,
        as_positional=False,
        parser_class=ExactParser,
        exit_on_error=False,
        prog=f"python -m lmix {command}",
    )


def run_report(args: list[str]) -> None:
    """Run `report`: write tables and figures of runs."""
    from lmix.report import write_report

    settings = report_parser().parse_args(args)
    print(write_report(settings.folders, settings.out, settings.title))


def report_parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m lmix report", description="Write tables and figures of runs.", allow_abbrev=False
    )
    parser.add_argument("folders", nargs="+", type=Path, help="folders of runs, sweeps and comparisons")
    parser.add_argument("--out", type=Path, default=Path("report"), help="folder for report.md, CSV, PNG and SVG")
    parser.add_argument("--title", default="lmix report", help="heading of report.md")
    return parser


def run_plan(args: list[str]) -> None:
    """Run `plan`: print the memory and time that a run would need. Takes the flags of `fit` and of the devices."""
    from lmix.planning import Device, describe, needs

    parser = ArgumentParser(
        prog="python -m lmix plan",
        description="Estimate memory and time of a run before starting it. Takes the flags of `fit` as well as these.",
        allow_abbrev=False,
    )
    parser.add_argument("--prompt_tokens", type=int, default=256, help="tokens of the longest prompt")
    parser.add_argument("--device_gb", type=float, default=80.0, help="memory of a device in GB")
    rate = "matmul rate of a device in TFLOP/s, for large matrices"
    parser.add_argument("--tflops", type=float, default=300.0, help=rate)
    parser.add_argument("--bandwidth", type=float, default=2000.0, help="memory bandwidth of a device in GB/s")
    parser.add_argument("--live", type=float, default=1.0, help="fraction of groups that are not dead")
    settings, others = parser.parse_known_args(args)
    device = Device(settings.device_gb, settings.tflops, settings.bandwidth)
    run = planned_run(others)
    print(describe(run[0], needs(*run, device, settings.prompt_tokens, settings.live)))


def planned_run(args: list[str]) -> tuple[Any, Any, int, bool]:
    """The module and data of a `fit` run, its number of devices, and whether the backbone is sharded over them."""
    from lmix.training.strategies import ShardedStrategy

    # on CPUs, because the devices to plan for may not exist on this machine
    trainer_cli = run_trainer(["fit", *args, "--trainer.accelerator=cpu"], start=False)
    trainer = trainer_cli.trainer
    devices = trainer.num_devices * trainer.num_nodes
    return trainer_cli.model, trainer_cli.datamodule, devices, isinstance(trainer.strategy, ShardedStrategy)
