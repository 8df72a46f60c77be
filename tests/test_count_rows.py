"""Rows of a results page are counted by what was measured, as the commands that wrote them count them."""

import gzip
import sys

import count_rows

from lmix.files import json_lines

ROW = {"problem_id": 0, "format_correct": True, "answer_correct": False, "ended": True}


def test_groups_of_a_sweep_and_of_a_run(tmp_path, monkeypatch, capsys):
    swept = [
        ROW | {"problem_id": number, "who": "mixed", "mixture": "logits", "alpha": a, "answer_correct": a > 0.2}
        for number, a in enumerate((0.5, 0.1, 0.5))
    ]
    # two samples of one problem, then one
    trained = [ROW | {"step": step, "ended": step == 20} for step in (10, 10, 20)]
    with gzip.open(tmp_path / "sweep.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json_lines(swept))
    (tmp_path / "run.jsonl").write_text("".join(json_lines(trained)), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["count_rows.py", *map(str, sorted(tmp_path.iterdir()))])
    count_rows.main()
    found = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    first = "sweep mixture logits who mixed alpha"
    one, two = "(20.7 to 100.0)", "(34.2 to 100.0)"
    assert found == [
        f"run step 10 n 2 format 100.0 {one} solved 0.0 (0.0 to 79.3) answered 0.0 (0.0 to 79.3) ended 0.0",
        f"run step 20 n 1 format 100.0 {one} solved 0.0 (0.0 to 79.3) answered 0.0 (0.0 to 79.3) ended 100.0",
        f"{first} 0.1 n 1 format 100.0 {one} solved 0.0 (0.0 to 79.3) answered 0.0 (0.0 to 79.3) ended 100.0",
        f"{first} 0.5 n 2 format 100.0 {two} solved 100.0 {two} answered 100.0 {two} ended 100.0",
    ]


def test_a_right_answer_of_a_cut_completion_is_answered_and_not_solved(tmp_path, monkeypatch, capsys):
    cut = [ROW | {"answer_correct": True, "ended": False}]
    (tmp_path / "cut.jsonl").write_text("".join(json_lines(cut)), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["count_rows.py", str(tmp_path / "cut.jsonl")])
    count_rows.main()
    assert "solved   0.0 (0.0 to 79.3)  answered 100.0 (20.7 to 100.0)  ended 0.0" in capsys.readouterr().out


def test_greedy_rows_come_before_sampled_ones(tmp_path, monkeypatch, capsys):
    """Greedy rows of evaluate have no temperature, and those of a run no seed."""
    rows = [ROW | {"temperature": temperature} for temperature in (1.0, None)]
    (tmp_path / "rows.jsonl").write_text("".join(json_lines(rows)), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["count_rows.py", str(tmp_path / "rows.jsonl")])
    count_rows.main()
    assert [line.split()[2] for line in capsys.readouterr().out.splitlines()] == ["None", "1.0"]
