"""Run a plan stage by stage, and record the time and memory of each."""

import json
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path

from .stage import DONE, Stage

USED = "used.jsonl"
"""File in a stage's folder with seconds, peak memory and exit status of each time that the stage ran."""


def execute(waiting: Sequence[Stage], plan_only: bool, jobs: int = 1) -> int:
    """Print and run the stages in order, and stop at the first failure. Returns the exit status.

    Args:
        waiting: the stages, in ascending order of `wave`.
        plan_only: only print the commands.
        jobs: stages of one wave that run at the same time. With more than one, the output of a stage goes to a file
            beside its folder: FOLDER.log.
    """
    start = time.monotonic()
    drawn, wanted = 0, sum(stage.completions for stage in waiting)
    failed = threading.Event()

    def perform(number: int, stage: Stage) -> str | None:
        """Run a stage. Returns what went wrong."""
        nonlocal drawn
        if failed.is_set():
            return None
        line = stage.line()
        print(f"\n[{number}/{len(waiting)}] {stage.name}\n{shlex.join(line)}", flush=True)
        if plan_only:
            return None
        error = outcome(stage, line, stage.folder.with_name(f"{stage.folder.name}.log") if jobs > 1 else None)
        if error:
            failed.set()
            return error
        drawn += stage.completions
        minutes = (time.monotonic() - start) / 60
        left = minutes * (wanted - drawn) / drawn if drawn else 0.0
        print(f"{minutes:.1f} minutes so far, about {left:.0f} left", flush=True)
        return None

    numbered = list(enumerate(waiting, start=1))
    for _, wave in groupby(numbered, key=lambda item: item[1].wave):
        if jobs == 1:
            errors = [perform(*item) for item in wave]
        else:
            with ThreadPoolExecutor(jobs) as pool:
                errors = list(pool.map(lambda item: perform(*item), wave))
        if messages := [error for error in errors if error]:
            print("", *messages, sep="\n")
            return 1
    return 0


def outcome(stage: Stage, line: list[str], output: Path | None) -> str | None:
    """Run a stage's command and mark the stage as finished. Returns what went wrong."""
    if run([sys.executable, *line[1:]], stage.folder, output):
        where = f" (see {output})" if output else ""
        return f"{stage.name} failed{where}; fix the cause and run the same command again: finished stages are kept"
    if stage.last and not stage.last.is_file():
        return f"{stage.name} ended without {stage.last}: do not set its number of steps or folder by --set"
    (stage.folder / DONE).touch()
    return None


def run(line: list[str], folder: Path, output: Path | None = None) -> int:
    """Run a command, and append its time and memory to the folder's `used.jsonl`. Returns its exit status.

    Args:
        line: the command.
        folder: the folder that it writes.
        output: a file for what it prints; None for the terminal.
    """
    began = time.monotonic()
    if output is None:
        process = subprocess.Popen(line)
    else:
        output.parent.mkdir(parents=True, exist_ok=True)
        with output.open("a") as file:
            process = subprocess.Popen(line, stdout=file, stderr=subprocess.STDOUT)
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
