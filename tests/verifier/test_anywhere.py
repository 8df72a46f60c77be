"""The answer that a completion states in whatever form, and that it is judged at most once."""

import pytest

from lmix.tasks import ArithmeticTask
from lmix.verifier.anywhere import stated_answer


@pytest.mark.parametrize(
    ("completion", "gold", "answer"),
    [
        ("3 + 4 = 7, so \\boxed{8}.", "7", "8"),  # a template comes before what is said elsewhere
        ("<answer>7</answer> or 9", "7", "7"),
        ("#### 7\nThat is all for today, 2026.", "7", "7"),
        ("The answer is 7 apples, by 3 + 4.\nI counted 9 twice.", "7", "4"),  # the phrase's last number
        ("The result is: **1,234**", "1234", "1,234"),
        ("3 + 4 = 7\nSo Tom has 7 apples now.", "7", "7"),
        ("4 - 7 = \u22123", "-3", "-3"),
        ("She has 1/2 left.", "1/2", "1/2"),
        ("It ends at 0.5.", "0.5", "0.5"),
        ("v2 of file3.txt", "2", None),  # parts of words are no numbers
        ("**Answer:** B. Paris", "B", "B"),
        ("A city in France: (C)", "C", "C"),
        ("A cat and I", "A", None),
        ("Yes, it follows.\nAll are fish.", "No", "Yes"),
        ("The answer is True because so it is.", "False", "True"),
        ("Reverse it:\n\n`olleh`", "olleh", "olleh"),
        ("The answer is: 'olleh'.", "olleh", "olleh"),
        ("<think>The answer is 5.</think>I say 7", "7", "7"),
        ("", "7", None),
        ("  \n ", "olleh", None),
    ],
)
def test_stated_answer(completion, gold, answer):
    assert stated_answer(completion, gold) == answer


def test_right_anywhere_beside_right_in_the_template():
    asked = []

    class Counting(ArithmeticTask):
        def verify(self, answers, golds):
            asked.extend(answers)
            return super().verify(answers, golds)

    texts = ["\\boxed{7}", "So 7.", "\\boxed{6}, no, 7", "So 6.", "#### 7", ""]
    judged = Counting().judge(texts, ["7"] * len(texts))
    assert [(j.answer, j.answer_correct, j.right_anywhere) for j in judged] == [
        ("7", True, True),
        (None, False, True),
        ("6", False, False),
        (None, False, False),
        (None, False, True),
        (None, False, False),
    ]
    # the template's answers, then the others' that differ from them
    assert asked == ["7", None, "6", None, None, None, "7", "6", "7"]
