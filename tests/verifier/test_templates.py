"""Answer templates: what is found in a completion, and what a demonstration writes."""

import pytest

from lmix.tasks import answer_template

FOUND = [
    ("boxed", r"So \boxed{5}.", "5"),
    ("boxed", r"\boxed{ \frac{1}{2} }", r"\frac{1}{2}"),
    ("boxed", r"\fbox{7}", "7"),
    ("boxed", r"\boxed {8}", "8"),
    ("boxed", r"first \boxed{1}, then \boxed{2}", "2"),
    ("boxed", r"\boxed{1} and an empty \boxed{ }", "1"),
    ("boxed", r"\boxed{1} and an open \boxed{2", "1"),
    ("boxed", r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
    ("boxed", r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
    ("boxed", r"\begin{pmatrix} 1 \\\boxed{3} \end{pmatrix}", "3"),
    ("boxed", r"a stray } and { before \boxed{4}", "4"),
    ("boxed", r"\boxed{\boxed{6}}", "6"),
    ("boxed", r"\boxed{ \fbox{6} }", "6"),
    ("boxed", r"\boxed{x = \boxed{6}}", r"x = \boxed{6}"),
    ("boxed", "\\boxed{1\n2}", "1\n2"),
    ("boxed", "no box", None),
    ("boxed", r"\boxed{}", None),
    ("boxed", r"\boxed{\boxed{}}", None),
    ("boxed", r"\boxed{5", None),
    ("boxed", r"\boxed 5", "5"),
    ("boxed", r"so $x = \boxed 2$.", "2"),
    ("boxed", r"\boxed5 or rather \[\boxed -1.5\]", "-1.5"),
    ("boxed", r"\boxed 1,000. Done", "1,000"),
    ("boxed", r"The choice is \(\boxed B\)", "B"),
    ("boxed", r"\boxed{1}, then \boxed 2$", "2"),
    ("boxed", r"$\boxed 2x$", None),
    ("boxed", r"$\boxed 2 + 3$", None),
    ("boxed", r"\boxed 5 apples", None),
    ("boxed", r"\boxedB", None),
    # what a thought holds is no answer
    ("boxed", r"<think>\boxed{7}</think> The answer is 8.", None),
    ("boxed", r"<think>\boxed{7}</think> The answer is \boxed{8}.", "8"),
    ("boxed", r"The prompt opened the thought: \boxed{7}.</think>\boxed{8}", "8"),
    ("boxed", r"\boxed{6} <think> no, \boxed{7}", None),
    ("answer_tag", "<think><answer>7</answer></think>", None),
    ("hash", "<think>\n#### 7\n</think>\n#### 8", "8"),
    ("letter", "<think>Answer: A</think>\nAnswer: B", "B"),
    ("letter", "<think>\nAnswer: A\n</think>\nB it is.", None),
    # several boxes
    ("boxed", r"$x = \boxed{1}$ or $x = \boxed{2}$", "2"),
    ("boxed", r"the answers are $\boxed{1, 2}$", "1, 2"),
    ("boxed", r"\boxed{5\}", None),
    ("boxed", r"\\boxed{5}", None),
    ("boxed", "", None),
    ("answer_tag", "<answer> 5 </answer>", "5"),
    ("answer_tag", "<answer>1</answer><answer>2</answer>", "2"),
    ("answer_tag", "<answer>1</answer><answer> </answer>", "1"),
    ("answer_tag", "<answer>1</answer> <answer>2", "1"),
    ("answer_tag", "<answer>1 <answer>2</answer>", "2"),
    ("answer_tag", "<answer>a\nb</answer>", "a\nb"),
    ("answer_tag", "5</answer>", None),
    ("answer_tag", "<answer>5", None),
    ("answer_tag", "<answer></answer>", None),
    # the prompt ends in <think>
    *(
        (name, completion, answer)
        for name in ("think_answer", "think_answer_lenient")
        for completion, answer in [
            ("So 5. </think> <answer> 5 </answer>", "5"),
            ("So 5. </think> <answer>\\boxed{5}</answer>", "5"),
            ("</think> <answer> It is $\\boxed{\\frac{1}{2}}$. </answer>\n\nUser: next", "\\frac{1}{2}"),
            ("\\boxed{4}</think> <answer> x = 5 </answer>", "x = 5"),
            ("<answer>4</answer> no </think> <answer>5</answer>", "5"),
            ("</think> <answer>4</answer> wait </think> <answer>5</answer>", "5"),
            ("</think> <answer>1 <answer>2</answer>", "2"),
            ("</think> <answer></answer>", None),
            ("</think> <answer>\\boxed{ }</answer>", None),
            ("</think> <answer>\\boxed{5</answer>", None),
            ("</think> <answer>5", None),
            ("</think> 5 <answer>5</answer>", None),
            ("<answer>5</answer>", None),
            ("<answer>5</answer> </think>", None),
            ("</think> <answer>5</answer> <think>", None),
            ("\\boxed{5}", None),
        ]
    ),
    ("think_answer", "</think><answer>5</answer>", None),
    ("think_answer", "</think>\n<answer>5</answer>", None),
    ("think_answer_lenient", "</think><answer>5</answer>", "5"),
    ("think_answer_lenient", "</think>\n\n  <answer>5</answer>", "5"),
    ("hash", "work\n#### 72", "72"),
    ("hash", "#### 1\n#### 2\nmore", "2"),
    ("hash", "#### 1\n####   ", "1"),
    ("hash", "#### x = 5\r\n", "x = 5"),
    ("hash", "### 72", None),
    ("hash", "####", None),
    ("letter", "Because.\nAnswer: B", "B"),
    ("letter", "answer: (c).", "C"),
    ("letter", "**Final answer: D**", "D"),
    ("letter", "The correct answer: J", "J"),
    ("letter", "Answer: A\nNo.\nAnswer: B", "B"),
    ("letter", "Answer: B. Paris", "B"),
    ("letter", "### Answer: B", "B"),
    ("letter", "Answer\uff1aB", "B"),
    ("letter", "## **Final Answer: (C) bread and butter**", "C"),
    ("letter", "Answer: D: 3, 4", "D"),
    ("letter", "Answer: B. Paris or C. Rome", None),
    ("letter", "Answer: B, C", None),
    ("letter", "Answer: B. or C", None),
    ("letter", "Answer: Bread", None),
    ("letter", "Answer: not B", None),
    ("letter", "Answer: K", None),
    ("letter", "Answer: (A", None),
    ("letter", "Answer: A or B", None),
    ("letter", "The answer is B", None),
    ("letter", "Answer: Because", None),
]


@pytest.mark.parametrize(("name", "completion", "answer"), FOUND, ids=[f"{n}-{c!r}" for n, c, _ in FOUND])
def test_extract(name: str, completion: str, answer: str | None) -> None:
    assert answer_template(name).extract(completion) == answer


@pytest.mark.parametrize(
    ("name", "answer"),
    [("boxed", r"\frac{1}{2}"), ("answer_tag", "x+1"), ("hash", "72"), ("letter", "B"), ("think_answer", "72")],
)
def test_extract_undoes_wrap(name: str, answer: str) -> None:
    template = answer_template(name)
    assert template.extract(f"Work. {{\n{template.wrap(answer)}") == answer
    assert template.name == name
    assert template.instruction.endswith(".")


def test_letter_refuses_other_answers() -> None:
    with pytest.raises(ValueError, match="'12' does not fit the letter template"):
        answer_template("letter").wrap("12")


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match="'box' is unknown: use one of boxed, answer_tag, hash, letter, think_answer"):
        answer_template("box")


DEEP = 10**5


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("{" * DEEP + r"\boxed{1}" + "}" * DEEP, "1"),
        (r"\boxed{" * DEEP + "1" + "}" * DEEP, "1"),
        (r"\boxed{" * DEEP, None),
        (r"\boxed{" * DEEP + "}" * DEEP, None),
        (r"\boxed{ a" * DEEP + " }" * DEEP, ("a" + r"\boxed{ a" * (DEEP - 1) + " }" * (DEEP - 1))),
        (r"\boxed" + " " * 10**6, None),
        ("\\" * 10**6, None),
        ("a" * 10**6 + r"\boxed{2}", "2"),
    ],
    ids=["braces", "boxes", "open", "blank", "texts", "spaces", "backslashes", "long"],
)
def test_large_completions(completion: str, answer: str | None) -> None:
    found = answer_template("boxed").extract(completion)
    assert found == answer, "not as expected"  # a diff of megabytes would take longer than the search


@pytest.mark.parametrize("name", ["answer_tag", "hash", "letter", "think_answer", "think_answer_lenient"])
@pytest.mark.parametrize(
    "text", ["<answer>", "</answer>", "</think> <answer>", "</think> ", "### ", "####\n", "Answer: (", "*", "\n", " "]
)
def test_repeated_pieces_hold_no_answer(name: str, text: str) -> None:
    found = answer_template(name).extract(text * (10**6 // len(text)))
    assert found is None, "not as expected"
