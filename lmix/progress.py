"""Progress of long runs: an estimate of the time left, and a status line that is updated in place."""

import math
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

Seconds = Callable[[], float]
"""A clock: seconds since any fixed moment."""


def duration(seconds: float) -> str:
    """A duration in its two largest units: `45 s`, `12 min`, `3 h 05 min`, `2 d 4 h`."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(minutes / 60)
    return f"{hours // 24} d {hours % 24} h"


def time_left(seconds: float | None) -> str:
    """The estimate as displayed; empty if there is none."""
    return "" if seconds is None else f"about {duration(seconds)} left"


class Pace:
    """Estimate of the time that the remaining steps take, from the most recent ones.

    The time between two steps (evaluations, checkpoints) counts as part of the later step.

    Args:
        window: number of recent steps to average over. Older ones may have had completions of another length.
        clock: returns the current time in seconds.
    """

    def __init__(self, window: int = 20, clock: Seconds = time.monotonic) -> None:
        self.clock = clock
        self.ends: deque[float] = deque(maxlen=window + 1)

    def start(self) -> None:
        """Begin to measure, at the start of the first step."""
        self.ends.clear()
        self.ends.append(self.clock())

    def step(self) -> None:
        """Record the end of a step."""
        self.ends.append(self.clock())

    def left(self, steps: int) -> float | None:
        """Seconds until `steps` more steps end, including the current one; None before the first step has ended."""
        if len(self.ends) < 2 or steps < 0:
            return None
        each = (self.ends[-1] - self.ends[0]) / (len(self.ends) - 1)
        under_way = min(self.clock() - self.ends[-1], each) if steps else 0.0
        return each * steps - under_way


class StatusLine:
    """A line that is updated in place on a terminal or in a notebook. Nothing is written to a log file.

    Args:
        console: the console to write to.
        every: minimum seconds between two updates in a notebook, where each one is a message to the browser.
        clock: returns the current time in seconds.
    """

    def __init__(self, console: Console, every: float = 0.5, clock: Seconds = time.monotonic) -> None:
        self.console, self.every, self.clock = console, every, clock
        self.bar: Progress | None = None
        self.display: Any = None
        self.changed = -math.inf

    def show(self, name: str, done: int, total: int, text: str) -> None:
        """Update the line.

        Args:
            name: the current phase.
            done: finished parts of the phase.
            total: all parts of the phase.
            text: the progress in words.
        """
        if self.console.is_jupyter:
            self._show_in_notebook(f"{name}: {text}")
        elif self.console.is_terminal:
            self._show_bar(name, done, total, text)

    def hide(self) -> None:
        """Remove the line before anything else is printed."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
        if self.display is not None:
            self.display.update(plain(""), raw=True)
            self.changed = -math.inf

    def _show_bar(self, name: str, done: int, total: int, text: str) -> None:
        if self.bar is None:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"))
            self.bar = Progress(*columns, TimeElapsedColumn(), console=self.console, transient=True)
            self.bar.start()
            self.bar.add_task(name, total=total, text=text)
        self.bar.update(self.bar.task_ids[0], description=name, total=total, completed=done, text=text)

    def _show_in_notebook(self, text: str) -> None:
        if (now := self.clock()) - self.changed < self.every:
            return
        self.changed = now
        if self.display is None:
            from IPython.display import display  # pyright: ignore[reportMissingImports]  # a notebook has it

            self.display = display(plain(text), raw=True, display_id=True)
        else:
            self.display.update(plain(text), raw=True)


def plain(text: str) -> dict[str, str]:
    """The text as a MIME bundle for IPython."""
    return {"text/plain": text}
