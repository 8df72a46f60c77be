"""How the benchmark's process and its contenders' talk: an order a line, and a line of figures for an answer.

Each contender is a process of its own that works only when it is ordered to, so that they can take turns.
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
"""Begins an answer's line; libraries print others."""
END = "end"


class Worker:
    """A contender's process; a context manager, which ends it.

    Args:
        name: of the contender, see `serve.py`.
        work: what it does in a step.
    """

    def __init__(self, name: str, work: Work) -> None:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(work.threads),
            "HF_HUB_OFFLINE": "1",
            "THP_MEM_ALLOC_ENABLE": "1",  # as lmix's command line sets it; here for all of them
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }
        # contenders may leave files in their current folder
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
        self.answer()  # it is ready

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
        """Give an order, and wait for its figures. Raises SystemExit where the contender has ended."""
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
    """Answer an order; without figures, say that the contender is ready."""
    print(MARK + json.dumps(figures), flush=True)


def next_order() -> str:
    """Wait for an order."""
    return (sys.stdin.readline() or END).strip()


def serve(contender: Any) -> None:
    """Obey orders, which are names of the contender's methods, until the end."""
    tell()
    while (order := next_order()) != END:
        figures = getattr(contender, order)()
        reset_memory()
        tell(**figures)
