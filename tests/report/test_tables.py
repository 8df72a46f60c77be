# ruff: noqa: RUF001 - the alpha is meant

import csv
import io
import json

import pytest

from lmix.evaluation.statistics import wilson_interval
from lmix.report import tables
from lmix.report.results import read_comparison, read_sweep
from lmix.report.runs import read_run
from tests.report.conftest import config, solving


def test_rates_by_method(make_run):
    runs = [
        read_run(make_run("a", solving(0.25, 0.75, 0.5), config(0))),
        read_run(make_run("b", solving(0.25, 0.5, 1.0), config(1))),
        read_run(make_run("c", solving(0.25, 0.5), config(0, alpha=0.0))),
    ]
    rows = tables.rates_rows(runs)
    assert rows[1]["final_solve_mean"] == 0.75
    assert (rows[1]["best_solve_min"], rows[1]["best_solve_max"]) == (0.75, 1.0)
    assert tables.rates_markdown(rows).splitlines()[2:] == [
        "| grpo | 1 | 10 | 50.0 | 50.0 | 100.0 |",
        "| fixed, α=0.5 | 2 | 20 | 75.0 (50.0 to 100.0) | 87.5 (75.0 to 100.0) | 100.0 (100.0 to 100.0) |",
    ]


def test_sweep(sweep_folder):
    rows = tables.sweep_rows(read_sweep(sweep_folder))
    assert (rows[1]["solved_low"], rows[1]["solved_high"]) == wilson_interval(120, 200)
    assert tables.sweep_markdown(rows).splitlines() == [
        "| α | format, logits, % | format, probs, % | solved, logits, % | solved, probs, % |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| 0 | 50.0 (43.1 to 56.9) | 50.0 (43.1 to 56.9) | 30.0 (24.1 to 36.7) | 30.0 (24.1 to 36.7) |",
        "| 0.5 | 95.0 (91.0 to 97.3) |  | 60.0 (53.1 to 66.5) |  |",
    ]


def test_comparison(compare_folder):
    comparison = read_comparison(compare_folder)
    assert "| base | 60.0 (50.2 to 69.1) | 40.0 (30.9 to 49.8) |" in tables.policies_markdown(
        tables.policies_rows(comparison)
    )
    assert tables.contingency_markdown(comparison).splitlines()[2:] == [
        "| base solves | 25 | 15 |",
        "| base does not | 10 | 50 |",
    ]
    assert "| 25 of 100 (25.0%) | 0.424 |" in tables.disagreement_markdown(comparison)


def test_csv_holds_plain_numbers(sweep_folder):
    rows = list(csv.DictReader(io.StringIO(tables.csv_text(tables.sweep_rows(read_sweep(sweep_folder))))))
    assert [row["mixture"] for row in rows] == ["logits", "logits", "probs"]
    assert float(rows[1]["solved_rate"]) == 0.6


@pytest.mark.parametrize("text", ["{", "[]", "{}", json.dumps({"task": "math", "rows": []})])
def test_damaged_results(sweep_folder, compare_folder, text):
    (sweep_folder / "sweep.json").write_text(text)
    (compare_folder / "compare.json").write_text(text)
    for read, folder in ((read_sweep, sweep_folder), (read_comparison, compare_folder)):
        with pytest.raises(ValueError, match="run the command again") as caught:
            read(folder)
        assert "\n" not in str(caught.value)
