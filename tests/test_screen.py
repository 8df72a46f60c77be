"""What scripts/screen.py counts besides the model's answers."""

import json
from pathlib import Path

from screen import count_constant, table

from lmix.tasks.reasoning_gym import Gold

SCREENED = Path(__file__).parent.parent / "docs" / "results" / "study" / "screening.jsonl"


def test_a_constant_answer_solves_the_problems_with_the_most_frequent_answer():
    assert count_constant(["1", "2", "1", "3", "1", "2"]) == 3
    golds = [Gold.of({"question": f"question {i}", "answer": "7"}) for i in range(4)]
    assert count_constant(golds) == 4  # golds of different questions are not equal, but their answers are


def test_the_table_shows_what_a_constant_answer_solves():
    rows = [json.loads(line) for line in SCREENED.read_text().splitlines()]
    assert len(rows) == 27
    header, _, first, second, *_ = table(rows).splitlines()
    assert "constant, %" in header
    assert first.startswith("| chain_sum ")
    assert "| 45 (31 to 60) | 48 |" in second  # letter_counting: the model is right less often than one constant answer
