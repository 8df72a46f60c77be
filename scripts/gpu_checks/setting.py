"""The settings of all checks, and the exceptions by which a check reports that it was skipped or failed."""

import os
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
Result = dict[str, Any]


class Skipped(Exception):
    """Raised by a check that can't run here, with the reason."""


class Failed(Exception):
    """Raised by a check that found an error.

    Args:
        reason: what is wrong.
        figures: what was measured nevertheless.
    """

    def __init__(self, reason: str, figures: Result | None = None) -> None:
        super().__init__(reason)
        self.figures = figures or {}


@dataclass(frozen=True)
class Setting:
    """The device to check, and how thoroughly."""

    device: torch.device
    quick: bool
    minutes: float
    start: float = field(default_factory=time.monotonic)

    @property
    def dtype(self) -> torch.dtype:
        """The data type for measuring speed."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    @property
    def seconds_left(self) -> float:
        return 60 * self.minutes - (time.monotonic() - self.start)

    def needs_cuda(self) -> None:
        if self.device.type != "cuda":
            raise Skipped("needs a CUDA device")

    def not_quick(self) -> None:
        if self.quick:
            raise Skipped("left out by --quick")

    def needs_seconds(self, seconds: float) -> None:
        if self.seconds_left < seconds:
            raise Skipped(f"takes about {seconds:.0f} s, and {self.seconds_left:.0f} s of --minutes are left")

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds_of(self, work: Any) -> float:
        """Seconds that a call takes, including its work on the device."""
        self.synchronize()
        start = time.perf_counter()
        work()
        self.synchronize()
        return time.perf_counter() - start


def unexpected(error: Exception) -> str:
    """The reason to report for an exception that is being handled. Prints its traceback."""
    traceback.print_exc()
    return f"{type(error).__name__}: {str(error).strip()[:600]}"


def run(line: list[str], folder: str | Path, seconds: float) -> subprocess.CompletedProcess:
    """Run Python with these arguments, without a network. Raises Failed with the end of the output."""
    folders = [str(ROOT), str(ROOT / "scripts"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(folders)}
    try:
        done = subprocess.run(
            [sys.executable, *line], cwd=folder, env=environment, capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"did not end within {seconds:.0f} s") from None
    if done.returncode:
        raise Failed(f"exit status {done.returncode}: ...{(done.stdout + done.stderr).strip()[-600:]}")
    return done
