import json
from pathlib import Path
from typing import get_args

import pytest

from lmix.model.tokenizer import load_tokenizer
from lmix.tasks import ArithmeticTask, CnK12Task, DatasetTask, MathTask, MMLUTask, Problem
from lmix.tasks.arithmetic import split_of
from lmix.tasks.task import TemplateName

ROW = {"problem": "What is 1+1?", "solution": "It is \\boxed{2}.", "answer": "2", "level": "Level 1"}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_arithmetic_is_right_seeded_and_its_splits_are_disjoint():
    task = ArithmeticTask(train_size=500, test_size=200)
    train, test = task.problems("train"), task.problems("test")
    assert (len(train), len(test)) == (500, 200)
    assert train == ArithmeticTask(train_size=500).problems("train")
    assert not {p.problem for p in train} & {p.problem for p in test}
    assert {split_of(p.problem) for p in test} == {"test"}
    for p in train:
        last = None
        for equation in p.solution.removesuffix(".").split(". "):
            left, right = equation.split(" = ")
            a, sign, b = left.split()
            assert last is None or a == last
            last = right
            assert int(right) == {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign]
        assert p.answer == last
        assert 0 < int(p.answer) < 200


def test_judging():
    task = ArithmeticTask()
    texts = ["1 + 1 = 2. \\boxed{2}", "\\boxed{3}", "The answer is 2.", "\\boxed{2}", "\\boxed{2", "\\boxed{}"]
    judged = task.judge(texts, ["2"] * 6)
    assert [j.format_correct for j in judged] == [True, True, False, True, False, False]
    assert [j.answer_correct for j in judged] == [True, False, False, True, False, False]


def test_prompts_with_and_without_a_chat_template():
    tokenizer = load_tokenizer("lmix:tiny-arithmetic")
    task = ArithmeticTask()
    problem = task.problems("train")[0]
    assert tokenizer.decode(task.prompt_ids(problem, tokenizer)) == problem.problem + "\n"
    tokenizer = type(tokenizer).from_pretrained(tokenizer.name_or_path)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}answer"
    text = tokenizer.decode(ArithmeticTask(system="now").prompt_ids(problem, tokenizer))
    assert problem.problem in text
    assert text != problem.problem + "\n"
    assert task.prompt_text(problem) == problem.problem + "\n"
    assert "\\boxed{}" in ArithmeticTask(prompt="{problem} {instruction}").prompt_text(problem)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_files_of_each_kind(tmp_path, suffix):
    from datasets import Dataset

    path = tmp_path / f"train.{suffix}"
    rows = Dataset.from_list([ROW, {**ROW, "answer": "7"}])
    {"jsonl": rows.to_json, "json": rows.to_json, "csv": rows.to_csv, "parquet": rows.to_parquet}[suffix](str(path))
    problems = DatasetTask(str(path), answer_column="answer").problems("train")
    assert [p.answer for p in problems] == ["2", "7"]
    assert [p.id for p in problems] == [0, 1]


def test_a_folder_in_the_hub_s_layout(tmp_path):
    from datasets import Dataset

    (tmp_path / "data").mkdir()
    for split, level in (("train", 1), ("test", 5)):
        rows = Dataset.from_list([{**ROW, "level": f"Level {level}"}])
        rows.to_parquet(str(tmp_path / "data" / f"{split}-00000-of-00001.parquet"))
    task = MathTask(str(tmp_path))
    assert task.problems("train")[0].answer == "2"
    assert MathTask(str(tmp_path), levels=[5]).problems("test")[0].id == 0
    with pytest.raises(ValueError, match="contains no problems"):
        MathTask(str(tmp_path), levels=[5]).problems("train")


def test_a_solution_without_a_box_is_left_out_and_said(tmp_path, caplog):
    path = write(tmp_path / "a.jsonl", [{**ROW, "solution": "no box"}, ROW])
    assert [p.id for p in MathTask(path).problems("train")] == [1]
    assert "1 of 2 rows have no verifiable answer, such as row 0; left out" in caplog.text


@pytest.mark.parametrize(
    ("rows", "arguments", "message"),
    [
        ([{"question": "1", "solution": "2"}], {}, "column 'problem' is not in"),
        ([], {}, "the file is empty"),
        ([{**ROW, "problem": None}, ROW], {}, "row 0 of .* is empty in column 'problem'"),
        ([{**ROW, "answer": " "}], {"answer_column": "answer"}, "is empty in column 'answer'"),
        ([ROW], {"levels": [3]}, "contains no problems for split 'train'"),
    ],
)
def test_malformed_data_are_one_line_errors(tmp_path, rows, arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        MathTask(write(tmp_path / "bad.jsonl", rows), **arguments).problems("train")
    assert "\n" not in str(error.value)


def test_sources_that_are_not_there(tmp_path):
    broken = tmp_path / "broken.jsonl"
    broken.write_text("{not json\n")
    for source in (str(tmp_path / "none.jsonl"), str(tmp_path / "folder"), str(broken)):
        with pytest.raises(ValueError, match="can't be read"):
            MathTask(source).problems("train")


def test_settings_out_of_range():
    with pytest.raises(ValueError, match="levels"):
        MathTask(levels=[6])
    with pytest.raises(ValueError, match="train_size"):
        ArithmeticTask(train_size=0)
    with pytest.raises(ValueError, match=r"must contain \{problem\}"):
        ArithmeticTask(prompt="solve")
    with pytest.raises(ValueError, match=r"or be a file that does, not 'a\\x00b'"):
        ArithmeticTask(prompt="a\0b")
    with pytest.raises(ValueError, match="both null"):
        DatasetTask("x.jsonl", answer_column=None)


def test_a_prompt_of_a_file(tmp_path):
    """Without a chat template, to the letter; the line end at the file's end is the editor's."""
    path = tmp_path / "prompt.txt"
    path.write_text("User: {problem}\nAssistant: <think>\n", encoding="utf-8")
    task = ArithmeticTask(prompt=str(path), template="think_answer", chat=False)
    assert task.prompt_text(Problem(0, "2 + 2", "4")) == "User: 2 + 2\nAssistant: <think>"
    path.write_text("User: ", encoding="utf-8")
    with pytest.raises(ValueError, match=r"must contain \{problem\}"):
        ArithmeticTask(prompt=str(path))
    path.write_bytes(b"{problem}\xff")
    with pytest.raises(ValueError, match="is not text in UTF-8"):
        ArithmeticTask(prompt=str(path))


def test_r1_zero_s_form():
    path = Path(__file__).parent.parent.parent / "configs" / "prompts" / "r1_zero.txt"
    task = ArithmeticTask(prompt=str(path), template="think_answer", chat=False)
    problem = Problem(0, "What is 2 + 2?", "4", "Two and two are 4.")
    prompt = task.prompt_text(problem)
    assert prompt.endswith("\nUser: What is 2 + 2?\nAssistant: <think>")
    demonstration = task.demonstration(problem)
    assert demonstration == "Two and two are 4.\n</think> <answer> \\boxed{4} </answer>"
    (judgement,) = task.judge([demonstration], ["4"])
    assert judgement.answer_correct


def test_tasks_import_neither_torch_nor_sympy():
    import subprocess
    import sys

    code = "import sys, lmix.tasks; sys.exit('torch' in sys.modules or 'sympy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_hub_data_set_without_held_out_problems(tmp_path):
    from datasets import Dataset

    (tmp_path / "data").mkdir()
    Dataset.from_list([ROW] * 3).to_parquet(str(tmp_path / "data" / "train-00000-of-00001.parquet"))
    task = DatasetTask(str(tmp_path), test_split=None)
    assert task.splits == {"train"}
    assert DatasetTask(str(tmp_path)).splits == {"train", "test"}


def test_cn_k12_keeps_its_own_rows_that_can_be_judged(tmp_path):
    """A folder in the layout of AI-MO/NuminaMath-1.5: one split, many sources."""
    from datasets import Dataset

    (tmp_path / "data").mkdir()
    row = {**ROW, "source": "cn_k12", "problem_is_valid": "Yes"}
    rows = [
        row,
        {**row, "source": "olympiads"},
        {**row, "answer": "proof"},
        {**row, "answer": ""},
        {**row, "problem_is_valid": "Incomplete"},
        {**row, "answer": "\\text{A}", "solution": "So \\boxed{\\text{A}}."},
        {**row, "solution": "First \\boxed{1}, then \\boxed{2}."},
    ]
    Dataset.from_list(rows).to_parquet(str(tmp_path / "data" / "train-00000-of-00001.parquet"))
    task = CnK12Task(str(tmp_path))
    problems = task.problems("train")
    assert [p.id for p in problems] == [0, 5]
    assert task.splits == {"train"}
    try:
        judged = task.judge(["\\boxed{2}", "It is \\boxed{A}.", "\\boxed{B}"], ["2", "\\text{A}", "\\text{A}"])
    finally:
        task.close()
    assert [j.answer_correct for j in judged] == [True, True, False]
    local = write(tmp_path / "test.jsonl", [ROW])  # files of ours have no column `source`
    assert len(CnK12Task(str(tmp_path), test_source=local).problems("test")) == 1
    assert CnK12Task(str(tmp_path), test_source=local).splits == {"train", "test"}


MMLU_ROW = {"question": "Which is even?", "choices": ["1", "2", "3", "5"], "answer": 1, "subject": "algebra"}


def test_mmlu(tmp_path):
    """A folder in the layout of cais/mmlu: a configuration `all`, and a training split of another name."""
    from datasets import Dataset

    (tmp_path / "all").mkdir()
    for split, subject in (("auxiliary_train", ""), ("test", "algebra"), ("validation", "law")):
        rows = Dataset.from_list([{**MMLU_ROW, "subject": subject}] * 2)
        rows.to_parquet(str(tmp_path / "all" / f"{split}-00000-of-00001.parquet"))
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: all\n  data_files:\n"
        + "".join(f"  - split: {s}\n    path: all/{s}-*\n" for s in ("auxiliary_train", "test", "validation"))
        + "---\n"
    )
    task = MMLUTask(str(tmp_path))
    (problem, _) = task.problems("train")
    assert problem.problem == "Which is even?\nA. 1\nB. 2\nC. 3\nD. 5"
    assert problem.answer == "B"
    assert task.demonstration(problem) == "Answer: B"
    try:
        texts = ["2 is even.\nAnswer: B", "Answer: A", "The answer is B", "**Answer: (b)**"]
        judged = task.judge(texts, ["B"] * 4)
    finally:
        task.close()
    assert [j.format_correct for j in judged] == [True, True, False, True]
    assert [j.answer_correct for j in judged] == [True, False, False, True]
    assert len(MMLUTask(str(tmp_path), subjects=["algebra"]).problems("test")) == 2
    assert len(MMLUTask(str(tmp_path), train_split="validation", subjects=["law"]).problems("train")) == 2
    with pytest.raises(ValueError, match="contains no problems"):
        MMLUTask(str(tmp_path), subjects=["law"]).problems("test")
    with pytest.raises(ValueError, match=r"task.subjects is empty"):
        MMLUTask(subjects=[])


def test_mmlu_rows_that_do_not_fit(tmp_path):
    path = write(tmp_path / "a.jsonl", [{**MMLU_ROW, "answer": 4}])
    with pytest.raises(ValueError, match="answer the index or letter of one of them"):
        MMLUTask(path, test_source=path).problems("train")


@pytest.mark.parametrize("template", get_args(TemplateName))
def test_a_demonstration_is_format_correct_and_right_in_each_template(template):
    answer = "B" if template == "letter" else "12"
    task = DatasetTask("x.jsonl", template=template)
    text = task.demonstration(Problem(0, "?", answer, "A worked solution."))
    assert task.template.extract(text) == answer
