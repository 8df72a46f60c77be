"""Run a plan stage by stage, and record the time and memory of each."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from .stage import DONE, Stage

USED = "used.jsonl"
"""File in a stage's folder with seconds, peak memory and exit status of each time that the stage ran."""


def execute(waiting: Sequence[Stage], plan_only: bool) -> int:
    """Print and run the stages in order, and stop at the first failure. Returns the exit status."""
    start = time.monotonic()
    drawn, wanted = 0, sum(stage.completions for stage in waiting)
    for number, stage in enumerate(waiting, start=1):
        line = stage.line()
        print(f"\n[{number}/{len(waiting)}] {stage.name}\n{shlex.join(line)}", flush=True)
        if plan_only:
            continue
        if run([sys.executable, *line[1:]], stage.folder):
            print(f"\n{stage.name} failed; fix the cause and run the same command again: finished stages are kept")
            return 1
        if stage.last and not stage.last.is_file():
            print(f"\n{stage.name} ended without {stage.last}: do not set its number of steps or folder by --set")
            return 1
        (stage.folder / DONE).touch()
        drawn += stage.completions
        minutes = (time.monotonic() - start) / 60
        left = minutes * (wanted - drawn) / drawn if drawn else 0.0
        print(f"{minutes:.1f} minutes so far, about {left:.0f} left", flush=True)
    return 0


def run(line: list[str], folder: Path) -> int:
    """Run a command, and append its time and memory to the folder's `used.jsonl`. Returns its exit status."""
    began = time.monotonic()
    process = subprocess.Popen(line)
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        process.terminate()
        process.wait()
        raise
    process.returncode = os.waitstatus_to_exitcode(status)
    # memory of the largest process, which is the one with the model; Linux counts in KiB
    used = {"seconds": round(time.monotonic() - began, 1), "peak_gb": round(usage.ru_maxrss * 1024 / 1e9, 2)}
    if folder.is_dir():
        with (folder / USED).open("a") as file:
            file.write(json.dumps(used | {"status": process.returncode}) + "\n")
    return process.returncode
