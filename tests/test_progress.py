"""The time that is left, by a clock that the test moves, and the line that changes in place."""

import io
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

from lmix.progress import Pace, StatusLine, duration, time_left


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (3570, "1 h 00 min"),
        (3900, "1 h 05 min"),
        (86399, "1 d 0 h"),
        (187000, "2 d 4 h"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
    assert time_left(seconds) == f"about {text} left"
    assert time_left(None) == ""


def test_the_estimate_follows_the_newest_steps_and_counts_down_within_one():
    pace = Pace(window=2, clock=(clock := Clock()))
    assert pace.left(10) is None
    pace.start()
    assert pace.left(10) is None
    for seconds in (100, 10, 10):
        clock.now += seconds
        pace.step()
    assert pace.left(5) == 50  # the slow first step is out of the window
    clock.now += 4
    assert pace.left(5) == 46
    clock.now += 60
    assert pace.left(5) == 40  # a step that takes longer than expected leaves the others as they are
    assert pace.left(0) == 0
    assert pace.left(-1) is None
    pace.start()
    assert pace.left(5) is None


def test_a_terminal_has_a_bar_that_goes_away():
    out = io.StringIO()
    status = StatusLine(Console(file=out, force_terminal=True, width=100))
    status.show("step 1/3 rollouts", 2, 8, "2/8 completions")
    status.show("step 1/3 update", 1, 4, "1/4 micro-batches")
    status.hide()
    assert status.bar is None
    assert "step 1/3 update" in out.getvalue()
    assert "1/4 micro-batches" in out.getvalue()


def test_a_log_file_has_nothing_of_it():
    out = io.StringIO()
    status = StatusLine(Console(file=out))
    status.show("rollouts", 2, 8, "2/8 completions")
    status.hide()
    assert out.getvalue() == ""


def test_a_notebook_has_one_output_that_is_updated_now_and_then(monkeypatch):
    shown = []

    def display(content, raw, display_id):
        assert raw
        assert display_id
        shown.append(("new", content["text/plain"]))
        return SimpleNamespace(update=lambda content, raw: shown.append(("update", content["text/plain"])))

    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    status = StatusLine(Console(file=io.StringIO(), force_jupyter=True), every=0.5, clock=(clock := Clock()))
    for count in range(4):
        status.show("rollouts", count, 4, f"{count}/4")
        clock.now += 0.3
    status.hide()
    status.show("update", 0, 2, "0/2")  # at once after it was hidden
    assert shown == [
        ("new", "rollouts: 0/4"),
        ("update", "rollouts: 2/4"),
        ("update", ""),
        ("update", "update: 0/2"),
    ]
