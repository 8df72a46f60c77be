# ruff: noqa: RUF001 - the alpha is meant

import pytest

from lmix.report.bands import FAMILIES, band, by_method, seeds_text
from lmix.report.methods import OBJECTIVES
from lmix.report.runs import read_run
from lmix.report.style import LOOKS, spread
from tests.report.conftest import config, solving


def test_band_has_the_steps_that_all_seeds_have(make_run):
    runs = [
        read_run(make_run("a", solving(0.25, 0.5), config(0))),
        read_run(make_run("b", solving(0.75, 1.0, 1.0), config(1))),
    ]
    line = band(runs, "val/solve_rate")
    assert line is not None
    assert (line.at, line.mean, line.low, line.high) == ([0, 10], [0.5, 0.75], [0.25, 0.5], [0.75, 1.0])
    assert band(runs, "absent") is None


def test_seeds_in_words(make_run):
    runs = [read_run(make_run(f"run{i}", solving(0.5), config(seed))) for i, seed in enumerate([0, 1, 1])]
    assert seeds_text(runs[:1]) == "1 seed"
    assert seeds_text(runs[:2]) == "2 seeds"
    assert seeds_text(runs) == "3 runs of 2 seeds"


def test_methods_have_one_order(make_run):
    runs = [
        read_run(make_run("a", solving(0.5), config(alpha=0.5))),
        read_run(make_run("b", solving(0.5), config(alpha=0.25))),
        read_run(make_run("c", solving(0.5), config(alpha=0.0))),
    ]
    assert list(by_method(runs)) == ["grpo", "fixed, α=0.25", "fixed, α=0.5"]


def test_looks_differ():
    assert set(LOOKS) == set(FAMILIES)
    assert set(OBJECTIVES.values()) <= set(FAMILIES)
    assert len({look.colour for look in LOOKS.values()}) == len({look.marker for look in LOOKS.values()}) == len(LOOKS)


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([0.1, 0.5, 0.9], [0.1, 0.5, 0.9]),
        ([0.5, 0.5], [0.45, 0.55]),
        ([0.55, 0.5, 0.1], [0.575, 0.475, 0.1]),
        ([1.0, 0.98], [1.0, 0.9]),
        ([0.0, 0.0, 0.0], [0.0, 0.1, 0.2]),
        ([], []),
    ],
)
def test_spread(places, expected):
    assert spread(places, 0.1) == pytest.approx(expected)
