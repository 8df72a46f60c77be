"""Inputs as they are: what a cell says becomes the problem and the gold answer, or an error that names it."""

import gzip
import json

import pytest
from datasets import ClassLabel, Dataset, Features, Value
from hypothesis import given
from hypothesis import strategies as st

from lmix.model.tokenizer import load_tokenizer
from lmix.tasks import CnK12Task, DatasetTask, MathTask, MMLUTask
from lmix.tasks.cells import cell_text
from lmix.tasks.rows import parse_json

USER = {"role": "user", "content": "What is 1+1?"}
SYSTEM = {"role": "system", "content": "Be brief."}
GSM8K = {
    "question": "Natalia sold clips to 48 friends, and half as many in May. How many?",
    "answer": "In May she sold 48/2 = <<48/2=24>>24 clips.\nTogether 48+24 = <<48+24=72>>72.\n#### 72",
}


def file_of(path, *lines):
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return str(path)


def problems(path, *rows, **arguments):
    return DatasetTask(file_of(path / "a.jsonl", *map(json.dumps, rows)), **arguments).problems("train")


def answers(path, *cells):
    """Of JSON cells, as they are written."""
    lines = [f'{{"problem": "p", "answer": {cell}}}' for cell in cells]
    return [p.answer for p in DatasetTask(file_of(path / "a.jsonl", *lines)).problems("train")]


def refusal(call, *arguments, **keywords) -> str:
    with pytest.raises(ValueError, match=r".") as error:
        call(*arguments, **keywords)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("cell", "answer"),
    [
        ('["3"]', "3"),
        ("[3]", "3"),
        ('[["3"]]', "3"),
        (r'"[\"\\\\frac{3}{2}\"]"', r"\frac{3}{2}"),  # Skywork-OR1: a JSON list inside a text
        ('"[1, 2]"', "[1, 2]"),  # an interval is text
        ('"[\\"a\\", \\"b\\"]"', '["a", "b"]'),
        ("1e-5", "1e-5"),
        ("1E400", "1E400"),
        ("0.10", "0.10"),
        ("34.0", "34.0"),
        ("-0.0", "-0.0"),
        ("3.14159265358979323846", "3.14159265358979323846"),
        ("12345678901234567890123", "12345678901234567890123"),
        ('"007"', "007"),
        ('"NaN"', "NaN"),
        ('"½ 答案"', "½ 答案"),
        (r'"\\boxed{34}"', "34"),
        (r'"$\\boxed{\\frac{1}{2}}$."', r"\frac{1}{2}"),
        ('"#### 1,080"', "1,080"),
    ],
)
def test_an_answer_is_what_its_cell_says(cell, answer, tmp_path):
    assert answers(tmp_path, cell) == [answer]


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (
            '{"ground_truth": "34", "style": "rule"}',
            "is an object: select a field with a dot, such as column.field; its fields are 'ground_truth', 'style'",
        ),
        ('["3", "4"]', r"\['3', '4'\] is a list of 2 elements, not one text"),
        ("NaN", "nan is not a number: fill it or remove the row"),
        ("[NaN]", "nan is not a number"),
        ("-Infinity", "-inf is not a number"),
        ("true", "True is a boolean, not text"),
        ("null", "is empty in column 'answer': fill it or remove the row"),
        ("[]", "is empty in column 'answer'"),
        ('" "', "is empty in column 'answer'"),
        ('"\\ud835"', "half of a surrogate pair"),
        ('[{"from": "gpt", "value": "3"}]', "is an object"),
        (json.dumps(GSM8K["answer"]), "is a whole solution, not an answer: .* task.answer_column to null.*hash"),
        (r'"So it is \\boxed{34}, as said."', "is a whole solution, not an answer: .* task.template to boxed"),
        ("9" * 5000, "line 2 is not valid JSON: Exceeds the limit"),
        ('"3", "answer": "4"', "line 2 is not valid JSON: an object has the name 'answer' twice"),
    ],
)
def test_a_cell_that_is_no_answer_is_refused_with_its_place(cell, message, tmp_path):
    said = refusal(answers, tmp_path, '"1"', cell)
    assert "a.jsonl" in said
    assert "row 1 of" in said or "line 2 is not valid JSON" in said
    assert "answer" in said
    with pytest.raises(ValueError, match=message):
        raise ValueError(said)


@given(number=st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.decimals(-1e50, 1e50)))
def test_numbers_keep_every_digit(number):
    spelled = str(number)
    assert cell_text(parse_json(spelled)) == spelled


def test_fields_inside_columns(tmp_path):
    row = {
        "data": {"question": [USER]},
        "reward_model": {"ground_truth": "34", "style": "rule"},
        "extra_info": [{"answer": ["It is 34."]}],
        "as.named": "5",
    }
    names = {"problem_column": "data.question", "solution_column": "extra_info.answer"}
    (problem,) = problems(tmp_path, row, answer_column="reward_model.ground_truth", **names)
    assert (problem.problem, problem.answer, problem.solution) == ("What is 1+1?", "34", "It is 34.")
    assert problems(tmp_path, row, answer_column="as.named", **names)[0].answer == "5"
    texts = {**row, "reward_model": json.dumps(row["reward_model"])}
    assert problems(tmp_path, texts, answer_column="reward_model.ground_truth", **names)[0].answer == "34"
    Dataset.from_list([row]).to_parquet(str(tmp_path / "a.parquet"))
    task = DatasetTask(str(tmp_path / "a.parquet"), answer_column="reward_model.ground_truth", **names)
    assert task.problems("train") == [problem]
    where = {"reward_model.style": ["rule", "model"]}
    assert len(problems(tmp_path, row, answer_column="as.named", where=where, **names)) == 1

    said = refusal(problems, tmp_path, row, answer_column="reward_model.truth", **names)
    assert "row 0 of" in said
    assert "column 'reward_model.truth': there is no field 'truth' in {'ground_truth': '34'" in said
    assert "column 'reward.truth' is not in" in refusal(problems, tmp_path, row, answer_column="reward.truth", **names)
    assert "is empty in column 'reward_model.ground_truth'" in refusal(
        problems, tmp_path, row, {**row, "reward_model": None}, answer_column="reward_model.ground_truth", **names
    )
    said = refusal(problems, tmp_path, row, answer_column="as.named", where={"reward_model.kind": "rule"}, **names)
    assert "row 0 of" in said
    assert "task.where: there is no field 'kind'" in said


@pytest.mark.parametrize(
    ("cell", "history"),
    [
        ([USER], ()),
        (USER, ()),
        ([[USER]], ()),
        ([SYSTEM, USER], (("system", "Be brief."),)),
        ([{**SYSTEM, "name": None}, {**USER, "name": None}], (("system", "Be brief."),)),
        ([{"role": "user", "content": [{"type": "text", "text": "What is 1+1?"}]}], ()),
        (
            [SYSTEM, {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}, USER],
            (("system", "Be brief."), ("user", "Hello"), ("assistant", "Hi")),
        ),
        (json.dumps([SYSTEM, USER]), (("system", "Be brief."),)),
        (repr([SYSTEM, USER]), (("system", "Be brief."),)),  # what `datasets` writes into a CSV file
    ],
)
def test_chat_messages_are_prompts(cell, history, tmp_path):
    (problem,) = problems(tmp_path, {"prompt": cell, "answer": "2"}, problem_column="prompt")
    assert (problem.problem, problem.history) == ("What is 1+1?", history)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ([SYSTEM], "the last chat message has the role 'system': a prompt must end with the user's"),
        ([USER, {"role": "assistant", "content": "2"}], "the last chat message has the role 'assistant'"),
        ([{"from": "human", "value": "?"}], "must have only role and content, not 'from', 'value'"),
        ([{**USER, "tool_calls": ["f"]}], "must have only role and content, not 'role', 'content', 'tool_calls'"),
        ([{"role": "user", "content": None}], "must have only role and content, not 'role'"),
        ([{"role": "user", "content": ["a", "b"]}], "role and content must be text"),
        ([{"role": "user", "content": [{"type": "image"}]}], "role and content must be text"),
        ("[{'role': 'user', 'content': 'a'} {'role'", "neither JSON nor a Python list"),
        (["What is 1+1?", "What is 2+2?"], "is a list of 2 elements, not one text"),
        ([{**USER, "content": " "}], "is empty in column 'prompt'"),
    ],
)
def test_chat_messages_that_are_no_prompt(cell, message, tmp_path):
    said = refusal(problems, tmp_path, {"prompt": cell, "answer": "2"}, problem_column="prompt")
    assert "row 0 of" in said
    assert "a.jsonl" in said
    assert "column 'prompt'" in said
    assert message in said


def test_chat_messages_go_through_the_chat_template(tmp_path):
    tokenizer = load_tokenizer("lmix:tiny-arithmetic")
    row = {"prompt": [SYSTEM, {"role": "user", "content": "3"}, {"role": "assistant", "content": "4"}, USER]}
    path = file_of(tmp_path / "a.jsonl", json.dumps({**row, "answer": "2"}))
    task = DatasetTask(path, problem_column="prompt", prompt="{problem}!")
    (problem,) = task.problems("train")
    said = refusal(task.prompt_ids, problem, tokenizer)
    assert "problem 0 of task a.jsonl is a conversation of 4 messages, which needs task.chat and a tokenizer" in said
    chatty = type(tokenizer).from_pretrained(tokenizer.name_or_path)
    chatty.chat_template = "{% for m in messages %}({{ m.role[0] }}{{ m.content }}){% endfor %}"
    ids = task.prompt_ids(problem, chatty)
    plain = "(sBe brief.)(u3)(a4)(uWhat is 1+1?!)"
    assert ids == chatty(plain, add_special_tokens=False)["input_ids"]
    said = refusal(DatasetTask(path, problem_column="prompt", system="Think.").problems, "train")
    assert "row 0 of" in said
    assert "already has a system message: set task.system to null, not 'Think.'" in said
    # one message is a prompt without a chat template too
    single = file_of(tmp_path / "b.jsonl", json.dumps({"prompt": [USER], "answer": "2"}))
    task = DatasetTask(single, problem_column="prompt", prompt="{problem}")
    text = tokenizer.decode(task.prompt_ids(task.problems("train")[0], tokenizer))
    assert text == tokenizer.decode(tokenizer("What is 1+1?")["input_ids"])


def test_an_assistant_s_message_is_a_solution(tmp_path):
    """TRL's conversational prompt and completion."""
    row = {"prompt": [USER], "completion": [{"role": "assistant", "content": "It is \\boxed{2}."}]}
    (problem,) = problems(tmp_path, row, problem_column="prompt", answer_column=None, solution_column="completion")
    assert (problem.answer, problem.solution) == ("2", "It is \\boxed{2}.")


def test_gsm8k_s_layout(tmp_path):
    settings = {"problem_column": "question", "answer_column": None, "solution_column": "answer", "template": "hash"}
    row = {**GSM8K, "answer": "It has #### in it.\nHe pays $70,000.\n#### 70,000"}
    path = file_of(tmp_path / "gsm8k.jsonl", json.dumps(GSM8K), json.dumps(row))
    task = DatasetTask(path, **settings)
    first, second = task.problems("train")
    assert (first.answer, second.answer) == ("72", "70,000")
    assert task.demonstration(first) == GSM8K["answer"]
    try:
        judged = task.judge(["It is\n#### 72", "#### 71", "72"], ["72"] * 3)
    finally:
        task.close()
    assert [j.answer_correct for j in judged] == [True, False, False]
    said = refusal(DatasetTask(path, problem_column="question").problems, "train")  # the whole solution as the gold
    assert "row 0 of" in said
    assert "column 'answer'" in said
    assert "task.answer_column to null and task.template to hash" in said
    said = refusal(DatasetTask(path, **{**settings, "template": "boxed"}).problems, "train")
    assert "2 of 2 rows have no verifiable answer, such as row 0; with task.answer_column null, task.template" in said


@pytest.mark.parametrize(
    ("template", "solution", "answer"),
    [
        ("hash", "So \\boxed{5} it is.", "5"),  # the last box where the template shows nothing
        ("answer_tag", "Then <answer>6</answer>, not \\boxed{5}.", "6"),
        ("letter", "As \\boxed{5} shows.\nAnswer: C", "C"),
        ("boxed", "\\boxed{4} and \\boxed{5}", "5"),
        ("hash", "#### \n#### -1/2\n", "-1/2"),
    ],
)
def test_golds_in_solutions(template, solution, answer, tmp_path):
    settings = {"answer_column": None, "solution_column": "solution", "template": template}
    assert problems(tmp_path, {"problem": "p", "solution": solution}, **settings)[0].answer == answer


@pytest.mark.parametrize("level", ["Level 5", 5, "5", [5]])
def test_levels_of_math_and_of_math_500(level, tmp_path):
    row = {"problem": "p", "solution": "\\boxed{1}"}
    lines = [json.dumps({**row, "level": value}) for value in (level, 4, "Level 4", None)]
    task = MathTask(file_of(tmp_path / "a.jsonl", *lines), levels=[5])
    assert [p.id for p in task.problems("train")] == [0]


@pytest.mark.parametrize(
    ("wanted", "ids"), [(5, [0, 1, 2]), ("5", [0, 1, 2]), (True, [3, 4, 5]), ("yes", [6]), (None, [7])]
)
def test_filters_see_through_types(wanted, ids, tmp_path):
    cells = [5, "5", [5], True, "true", "True", "yes", None]
    rows = [{"problem": "p", "answer": "1", "kind": cell} for cell in cells]
    assert [p.id for p in problems(tmp_path, *rows, where={"kind": [wanted]})] == ids


def test_cn_k12_without_an_answer_column(tmp_path):
    solutions = ["So \\boxed{\\text{A}}.", "\\boxed{1} and \\boxed{2}", "None.", "It is \\boxed{7}."]
    lines = [json.dumps({"problem": "p", "solution": s}) for s in solutions]
    task = CnK12Task(file_of(tmp_path / "a.jsonl", *lines), answer_column=None)
    assert [(p.id, p.answer) for p in task.problems("train")] == [(0, "\\text{A}"), (3, "7")]


TABLE = [
    ["problem", "answer", "level"],
    ["What is\n1+1, \"really\"?", "12345678901234567", "007"],
    ["No, 3?", "0.50", ""],
    ["Namibia's code", "NA", "1e3"],
    ["Is it empty?", "None", "True"],
]  # fmt: skip


@pytest.mark.parametrize("ending", ["csv", "tsv", "CSV", "csv.gz", "TSV.GZ"])
def test_tables_are_text(ending, tmp_path):
    import csv
    import io

    text = io.StringIO()
    csv.writer(text, dialect="excel-tab" if "tsv" in ending.lower() else "excel").writerows(TABLE)
    path = tmp_path / f"a.{ending}"
    path.write_bytes(("\ufeff" + text.getvalue()).encode())
    if ending.lower().endswith("gz"):
        path.write_bytes(gzip.compress(mtime=0, data=path.read_bytes()))
    read = DatasetTask(str(path)).problems("train")
    assert [p.answer for p in read] == ["12345678901234567", "0.50", "NA", "None"]
    assert read[0].problem == 'What is\n1+1, "really"?'
    assert [p.id for p in DatasetTask(str(path), where={"level": True}).problems("train")] == [3]
    said = refusal(DatasetTask(str(path), answer_column="level").problems, "train")
    assert "row 1 of" in said
    assert "is empty in column 'level': fill it or remove the row" in said


@pytest.mark.parametrize("ending", ["jsonl.gz", "JSONL", "JsonL.Gz", "json.gz", "JSON"])
def test_json_files_by_any_ending(ending, tmp_path):
    rows = [{"problem": "p", "answer": 1}, {"problem": "q", "answer": 2}]
    text = (
        json.dumps(rows)
        if ending.lower().startswith("json.") or ending == "JSON"
        else "\r\n".join(map(json.dumps, rows))
    )
    data = ("\ufeff" + text).encode()
    (tmp_path / f"a.{ending}").write_bytes(gzip.compress(mtime=0, data=data) if ending.lower().endswith("gz") else data)
    task = DatasetTask(str(tmp_path / f"a.{ending}"))
    assert [p.answer for p in task.problems("train")] == ["1", "2"]
    assert task.splits == {"train"}


def test_a_parquet_file_by_an_upper_case_ending(tmp_path):
    features = Features({"problem": Value("string"), "answer": Value("float32"), "level": Value("int64")})
    rows = {"problem": ["p", "q"], "answer": [0.1, 3.0], "level": [2**62 + 1, None]}
    Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "a.PARQUET"))
    path = str(tmp_path / "a.PARQUET")
    assert [float(p.answer) for p in DatasetTask(path).problems("train")] == [0.1, 3.0]
    kept = DatasetTask(path, answer_column="level", where={"problem": "p"})
    assert kept.problems("train")[0].answer == str(2**62 + 1)


@pytest.mark.parametrize(
    ("cell", "answer"),
    [(34.0, "34"), (1e-5, "0.00001"), (-0.25, "-0.25"), (1.5e-7, "0.00000015"), (float(2**53 - 1), str(2**53 - 1))],
)
def test_floats_of_typed_files(cell, answer, tmp_path):
    Dataset.from_list([{"problem": "p", "answer": cell}]).to_parquet(str(tmp_path / "a.parquet"))
    assert DatasetTask(str(tmp_path / "a.parquet")).problems("train")[0].answer == answer


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (1.2345678901234568e16, "1.2345678901234568e[+]16 is a float, which can't represent all digits"),
        (float("inf"), "inf is not a number"),
        (True, "True is a boolean"),
        (b"3", "b'3' is neither text nor a number"),
        (["3", "4"], "is a list of 2 elements, not one text"),
    ],
)
def test_cells_of_typed_files_that_are_refused(cell, message, tmp_path):
    Dataset.from_list([{"problem": "p", "answer": cell}]).to_parquet(str(tmp_path / "a.parquet"))
    with pytest.raises(ValueError, match=f"row 0 of '.*a.parquet', column 'answer': .*{message}"):
        DatasetTask(str(tmp_path / "a.parquet")).problems("train")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"problem,answer\np,1\nq,2,3\n", "line 3 has 3 cells, but the header has 2"),
        ("a.csv", b"problem,answer\np\n", "line 2 has 1 cells, but the header has 2"),
        ("a.csv", b"problem,answer,answer\np,1,2\n", "column 'answer' is in the header twice"),
        ("a.csv", b'problem,answer\n"p,1\n', "line 2: unexpected end of data"),
        ("a.csv", b"problem;answer\np;1\n", "column 'problem' is not in .*'problem;answer'"),
        ("a.csv", b"problem,answer\n", "is empty: split 'train' has no row"),
        ("a.tsv", b"problem,answer\np,1\n", "column 'problem' is not in .*'problem,answer'"),
        ("a.csv", b"problem,answer\np\xe9,1\n", "it is not UTF-8: "),
        ("a.jsonl", b"\xff\xfe{\x00}\x00", "it is not UTF-8: "),
        ("a.jsonl", b"\n\n", "is empty: split 'train' has no row"),
        ("a.json", b"[]", "is empty: split 'train' has no row"),
        ("a.json", b'{"data": [\n{"problem": "p"}]}', "line 1 is not valid JSON"),
        ("a.json", b'{"problem": ["p", "q"], "answer": ["1", "2"]}', "row 0 of .* column 'problem': .* is a list of 2"),
        ("a.jsonl", b'{"problem": "p"}\n{"problem": "q", "answer": 2}\n', "row 0 of .* is empty in column 'answer'"),
        ("a.jsonl.gz", b"{}\n", "can't be read: Not a gzipped file"),
        ("a.jsonl.gz", gzip.compress(mtime=0, data=b'{"problem": "p", "answer": "1"}\n' * 99)[:-12], "can't be read: "),
        ("a.jsonl.gz", b"", "the file is empty"),
        ("a.parquet", b"PAR1", "can't be read: "),
        ("a.parquet.gz", b"PAR1", "it is not a folder, a hub id or a file of a known kind [(].json, .jsonl, .csv"),
        ("a.xlsx", b"PK", "it is not a folder, a hub id or a file of a known kind [(].json, .*, .parquet[)]"),
    ],
)  # fmt: skip
def test_files_that_are_refused(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        DatasetTask(str(tmp_path / name)).problems("train")
    assert "\n" not in str(error.value)
    assert name in str(error.value)


MMLU_ROW = {"question": "Which is even?", "choices": ["1", "2", 3, 0.5], "answer": 1, "subject": "algebra"}


def test_mmlu_s_cells_are_text(tmp_path):
    path = file_of(tmp_path / "a.jsonl", json.dumps(MMLU_ROW))
    assert MMLUTask(path).problems("train")[0].problem == "Which is even?\nA. 1\nB. 2\nC. 3\nD. 0.5"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": None}, "has an empty question or choice"),
        ({"question": ["a", "b"]}, "column 'question': .* is a list of 2"),
        ({"choices": ["1", None]}, "has an empty question or choice"),
        ({"choices": ["1", {"text": "2"}]}, "column 'choices': .* is an object"),
        ({"choices": "['1', '2']"}, "choices must be a list of at most 10"),
        ({"answer": True}, "index or letter of one of them, not .* and True"),
        ({"answer": "E"}, "index or letter of one of them, not .* and 4"),
        ({"answer": "1"}, "index or letter of one of them, not .* and '1'"),
        ({"answer": ""}, "index or letter of one of them, not .* and ''"),
        ({"answer": 1.0}, "index or letter of one of them, not .* and 1.0"),
    ],
)
def test_mmlu_rows_that_are_refused(change, message, tmp_path):
    path = file_of(tmp_path / "a.jsonl", json.dumps(MMLU_ROW), json.dumps({**MMLU_ROW, **change}))
    with pytest.raises(ValueError, match=f"row 1 of '.*a.jsonl'.*{message}"):
        MMLUTask(path).problems("train")


@pytest.mark.parametrize(("labels", "answer"), [([1, 3], "B"), ([0, 0], "A"), ([3, 1], "D")])
def test_class_labels_are_their_names(labels, answer, tmp_path):
    """`cais/mmlu` stores its answers as class labels."""
    rows = {"question": ["p", "q"], "choices": [list("wxyz")] * 2, "answer": labels}
    table = Dataset.from_dict(rows).cast_column("answer", ClassLabel(names=list("ABCD")))
    table.to_parquet(str(tmp_path / "a.parquet"))
    path = str(tmp_path / "a.parquet")
    assert MMLUTask(path).problems("train")[0].answer == answer
    assert DatasetTask(path, problem_column="question").problems("train")[0].answer == answer
    assert len(DatasetTask(path, problem_column="question", where={"answer": answer}).problems("train")) >= 1
    assert MMLUTask(file_of(tmp_path / "a.jsonl", json.dumps({**MMLU_ROW, "answer": answer}))).problems("train")


def test_a_label_that_is_kept_secret_is_no_answer(tmp_path):
    features = Features({"problem": Value("string"), "answer": ClassLabel(names=["A", "B"])})
    Dataset.from_dict({"problem": ["p", "q"], "answer": [1, -1]}, features=features).to_parquet(
        str(tmp_path / "a.parquet")
    )
    with pytest.raises(ValueError, match=r"row 1 of .* is empty in column 'answer'"):
        DatasetTask(str(tmp_path / "a.parquet")).problems("train")
