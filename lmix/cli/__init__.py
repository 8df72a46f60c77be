"""The command line."""

from lmix.cli.commands import FUNCTIONS, main, report_parser

__all__ = ["FUNCTIONS", "main", "report_parser"]
