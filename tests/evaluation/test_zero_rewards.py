"""Why rewards are zero: counts and examples, of a run's first step and of stored rows."""

import io
import json
from dataclasses import asdict, replace

import pytest
from rich.console import Console

from lmix import cli
from lmix.evaluation.rows import EvaluationRow
from lmix.evaluation.zero_rewards import cause_of, count_causes, report
from lmix.tasks import DatasetTask
from lmix.training.completion_log import CompletionLog
from lmix.training.console import StepConsole
from tests.training.helpers import Canned, data, module, trainer

SOLVED = EvaluationRow("mixed", "logits", 0.5, 7, 0, "It is \\boxed{4}.", "4", "4", True, True, True, 9)
NO_TEMPLATE = replace(SOLVED, completion="It is [b]4[/b].", answer=None, format_correct=False, answer_correct=False)
WRONG = replace(SOLVED, completion="x" * 500 + "\\boxed{5}", answer="5", answer_correct=False)
CUT = replace(SOLVED, ended=False)
UNPARSED = replace(WRONG, answer="four?", parsed=False)


@pytest.mark.parametrize(
    ("row", "cause"),
    [
        (SOLVED, None),
        (NO_TEMPLATE, "no template"),
        (WRONG, "wrong"),
        (CUT, "not ended"),
        (replace(NO_TEMPLATE, ended=False), "not ended"),
        (UNPARSED, "could not be parsed"),
    ],
)
def test_one_cause_for_each_completion(row, cause):
    assert cause_of(row) == cause


def test_the_report_counts_causes_and_shows_the_first_of_each():
    rows = [SOLVED, WRONG, NO_TEMPLATE, replace(WRONG, problem_id=8), CUT, UNPARSED]
    counts = count_causes(rows)
    assert counts == {"no template": 1, "not ended": 1, "could not be parsed": 1, "wrong": 2}
    lines = report(rows, counts, len(rows))
    assert lines[0] == "5 of 6 completions got no verifier reward"
    assert [line.split(":")[0].strip() for line in lines[1::2]] == list(counts)
    assert lines[2] == "    problem 7, gold '4', answer none, 9 tokens: 'It is [b]4[/b].'"
    assert "problem 7, gold '4', answer '5'" in lines[8]
    assert len(lines[8]) < 300
    assert report([SOLVED], count_causes([SOLVED]), 1) == ["0 of 1 completions got no verifier reward"]


def test_a_judgement_says_whether_the_answer_could_be_read():
    """Also where only algebra tells; an answer of another call is forgotten."""
    task = DatasetTask("x.jsonl")
    try:
        texts = [*(f"\\boxed{{{answer}}}" for answer in (UNREADABLE, "\\sqrt{2} + x", "4")), "4"]
        judged = task.judge(texts, ["4"] * 4)
        assert [j.parsed for j in judged] == [False, True, True, True]
        assert [j.answer_correct for j in judged] == [False, False, True, False]
        assert task.judge(texts[2:], ["4"] * 2)[0].parsed
    finally:
        task.close()


UNREADABLE = "+" * 3000
"""Longer than any answer that is read."""


def test_the_first_step_is_explained_once_and_stored_rows_say_the_same(tmp_path, capsys):
    console = StepConsole()
    console.console = Console(file=(out := io.StringIO()), width=100, soft_wrap=True)
    m = module()
    m.sampler = Canned()
    callbacks = [console, CompletionLog()]
    trainer(tmp_path, 2, callbacks=callbacks, enable_progress_bar=True).fit(m, data(prompts=2))
    said = out.getvalue()
    assert said.count("4 of 8 completions got no verifier reward") == 1
    assert "no template: 4" in said
    assert "not ended" not in said
    (path,) = tmp_path.rglob("train.jsonl")
    assert cli.main(["rewards", f"--file={path}", "--step=1"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "4 of 8 completions got no verifier reward" in told
    assert " ".join(said[said.index("no template: 4") :].split("\n")[1].split()) in told
    assert cli.main(["rewards", f"--file={path}"]) == 0
    assert "8 of 16 completions" in capsys.readouterr().out


def test_stored_rows_of_an_evaluation_and_of_an_older_version(tmp_path, capsys):
    rows = [asdict(SOLVED), {name: value for name, value in asdict(UNPARSED).items() if name != "parsed"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cli.main(["rewards", f"--file={tmp_path / 'rows.jsonl'}"]) == 0
    assert "wrong: 1" in capsys.readouterr().out
    assert cli.main(["rewards", f"--file={tmp_path / 'rows.jsonl'}", "--step=3"]) == 1
    assert "contains no completions of step 3" in capsys.readouterr().err
    assert cli.main(["rewards", f"--file={tmp_path / 'none.jsonl'}"]) == 1
    assert "does not exist" in capsys.readouterr().err
    (tmp_path / "rows.jsonl").write_text("{}\n")
    assert cli.main(["rewards", f"--file={tmp_path / 'rows.jsonl'}"]) == 1
    assert "line 1 is not a completion row written by lmix" in capsys.readouterr().err
