"""Tables and figures from run folders, and from the output of `sweep` and `compare`."""

from lmix.report.methods import method_name
from lmix.report.runs import Run, read_run
from lmix.report.write import write_report

__all__ = ["Run", "method_name", "read_run", "write_report"]
