"""The command line."""

from lmix.cli.commands import FUNCTIONS, main, report_parser
from lmix.cli.trainer import run_trainer

__all__ = ["FUNCTIONS", "main", "report_parser", "run_trainer"]
