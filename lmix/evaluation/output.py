"""Output of evaluation: atomic file writes, and progress while tokens are sampled."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from lmix.files import write_lines
from lmix.rollout.engine import Progress

SUMMARIES = ("evaluation.json", "sweep.json", "compare.json", "audit.json")


def new_console() -> Console:
    return Console(highlight=False, soft_wrap=True)


def out_folder(out: str, summary: str) -> Path:
    """Create the folder for a command's `summary` file and rows.

    Raises:
        ValueError: the folder can't be created, or contains another command's results.
    """
    folder = Path(out).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"out {out!r} can't be created as a folder: {error.strerror}: choose another") from error
    for other in SUMMARIES:
        if other != summary and (folder / other).exists():
            raise ValueError(f"out {out!r} contains another command's {other}: choose a separate folder")
    return folder


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write an object as indented JSON, atomically."""
    write_lines(path, [json.dumps(content, ensure_ascii=False, indent=2) + "\n"])


@contextmanager
def drawing(console: Console, name: str, every: float = 20.0) -> Iterator[Progress]:
    """Show how many completions have ended: a bar on a terminal, otherwise a line every `every` seconds."""
    text = "{}/{} completions, {:,} tokens"
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"))
        with Bar(*columns, TimeElapsedColumn(), console=console, transient=True) as bar:
            task = bar.add_task(name, total=None, text="")
            yield lambda ended, rows, tokens: bar.update(
                task, total=rows, completed=ended, text=text.format(ended, rows, tokens)
            )
        return
    last = time.monotonic()

    def line(ended: int, rows: int, tokens: int) -> None:
        nonlocal last
        if time.monotonic() - last >= every:
            last = time.monotonic()
            console.print(f"{name}: {text.format(ended, rows, tokens)}")

    yield line
