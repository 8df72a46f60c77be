"""README's numbers: the script that writes them, and the pages that it writes them into."""

from pathlib import Path

import pytest
import readme

from lmix.report.runs import SOLVE_RATE, Run


def run(seed: int, first: float, last: float) -> Run:
    points = [(0, first), (20, 0.5), (40, last)]
    return Run(Path("x"), "fixed", "arithmetic", "tiny", seed, {}, {SOLVE_RATE: points})


def test_the_table_has_each_run_and_each_stream_alone():
    table = readme.numbers([run(0, 0.317, 0.977), run(1, 0.317, 0.98)], reference=0.1833, base=0.0)
    assert table.splitlines()[2:] == [
        "| mixed policy, seed 0 | 31.7 % | 97.7 % |",
        "| mixed policy, seed 1 | 31.7 % | 98.0 % |",
        "| SFT reference alone | 18.3 % |  |",
        "| base policy alone (never uses the answer template) | 0.0 % |  |",
    ]


def test_both_pages_have_the_same_table():
    first, second = ([found[0] for found in readme.MARKED.finditer(page.read_text())] for page in readme.PAGES)
    assert first == second
    assert "| mixed policy, seed 2 |" in first[0]


def test_pages_are_written_between_their_marks_only():
    for page in readme.PAGES:
        text = page.read_text(encoding="utf-8")
        once = readme.with_numbers(text, "| new |\n| \\1 |")
        assert "| new |\n| \\1 |\n<!-- end -->" in once
        before, after = text.split("<!-- numbers of")[0], text.split("<!-- end -->")[1]
        assert once.startswith(before)
        assert once.endswith(after)
        assert readme.with_numbers(once, "| new |\n| \\1 |") == once
    with pytest.raises(ValueError, match="once, not 0 times"):
        readme.with_numbers("no marks", "")
