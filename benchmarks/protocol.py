"""The protocol between the benchmark and its contenders: one line per order, and one line of figures per answer.

Each contender is a separate process that works only on request, so that they can take turns.
"""

import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.memory import reset_memory
from benchmarks.work import Work

ROOT = Path(__file__).parent.parent
MARK = "BENCHMARK "
"""Prefix of an answer's line, which distinguishes it from output of libraries."""
END = "end"


class Worker:
    """A contender's process. Use it as a context manager, which ends the process.

    Args:
        name: name of the contender, see `serve.py`.
        work: the work of a step.
    """

    def __init__(self, name: str, work: Work) -> None:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(work.threads),
            "HF_HUB_OFFLINE": "1",
            "THP_MEM_ALLOC_ENABLE": "1",  # lmix's command line sets it; here it is set for all contenders
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }
        # contenders may write files into their current folder
        self.folder = tempfile.TemporaryDirectory(prefix="lmix-benchmark-")
        self.line = [sys.executable, "-m", "benchmarks.serve", name, work.as_json()]
        self.process = subprocess.Popen(
            self.line,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
            cwd=self.folder.name,
        )
        self.answer()  # wait until it is ready

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: Any) -> None:
        try:
            self.process.communicate(END + "\n")
        except BaseException:
            self.process.kill()
            raise
        finally:
            self.folder.cleanup()

    def ask(self, order: str) -> dict[str, Any]:
        """Send an order and wait for its figures. Raises SystemExit if the contender has ended."""
        assert self.process.stdin is not None
        self.process.stdin.write(order + "\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(MARK):
                return json.loads(line.removeprefix(MARK))
        raise SystemExit(f"benchmark: a contender ended; run it alone to see why: {shlex.join(self.line)}")


def tell(**figures: Any) -> None:
    """Answer an order; without figures, report that the contender is ready."""
    print(MARK + json.dumps(figures), flush=True)


def next_order() -> str:
    """Wait for an order."""
    return (sys.stdin.readline() or END).strip()


def serve(contender: Any) -> None:
    """Execute orders, which are names of the contender's methods, until the end."""
    tell()
    while (order := next_order()) != END:
        figures = getattr(contender, order)()
        reset_memory()
        tell(**figures)
