"""Output of evaluation: atomic file writes, and progress while tokens are sampled."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from lmix.files import write_lines
from lmix.progress import Seconds, StatusLine, time_left
from lmix.rollout.engine import Progress
from lmix.rollout.types import Prompt

SUMMARIES = ("evaluation.json", "sweep.json", "compare.json", "audit.json")


def new_console() -> Console:
    return Console(highlight=False, soft_wrap=True)


def print_table(console: Console, table: Table) -> None:
    """Print a table as wide as the terminal at most: headers and cells are folded, and not cut or broken by it."""
    console.print(table, soft_wrap=False)


def print_prompt(console: Console, prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> None:
    """Print a prompt as the model reads it, special tokens included, with the answer that counts as right."""
    problem, text = prompt.problem, str(tokenizer.decode(prompt.ids))
    console.print(
        f"prompt of problem {problem.id} ({len(prompt.ids)} tokens, gold answer {problem.answer!r}):", markup=False
    )
    for line in shortened(text).split("\n"):  # a line end at the end of the prompt shows as an empty line
        console.print(f"  | {line}", markup=False)


def shortened(text: str, most: int = 4000) -> str:
    """A text, or its two ends if it is longer than `most` characters."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]}\n[{len(text) - 2 * half} characters left out]\n{text[-half:]}"


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
def drawing(console: Console, name: str, every: float = 20.0, clock: Seconds = time.monotonic) -> Iterator[Progress]:
    """Show how many completions have ended, with an estimate of the time left.

    On a terminal and in a notebook, one line changes in place; otherwise, a line is printed every `every` seconds.
    """
    status, start = StatusLine(console, clock=clock), clock()
    in_place = console.is_terminal or console.is_jupyter
    last = start

    def show(ended: int, rows: int, tokens: int) -> None:
        nonlocal last
        now = clock()
        left = time_left((now - start) / ended * (rows - ended)) if 0 < ended < rows else ""
        text = ", ".join(part for part in (f"{ended}/{rows} completions", f"{tokens:,} tokens", left) if part)
        if in_place:
            status.show(name, ended, rows, text)
        elif now - last >= every:
            last = now
            console.print(f"{name}: {text}")

    try:
        yield show
    finally:
        status.hide()
