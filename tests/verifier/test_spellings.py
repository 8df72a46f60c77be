# ruff: noqa: RUF001 (full-width characters are what is tested)
r"""Right answers in the spellings that people and models use, wrong ones in the same; choices of several."""

from collections.abc import Iterator

import pytest

from lmix.tasks import Verifier, normalise_answer
from lmix.verifier.choices import choices, without_label

PATIENCE = 100.0

RIGHT = [  # answer, gold
    # blanks as thousands separators
    (r"10\,000", "10000"), ("10 000", "10000"), ("12 345 678", "12345678"), ("10~000", "10000"),
    ("1 000.5", "1000.5"),
    ("10{,}000", "10000"), ("−10 000", "-10000"), ("10\N{NARROW NO-BREAK SPACE}000", "10000"),
    (r"10\ 000\text{ cm}", "10000"),
    # constants and sets of numbers
    (r"\mathrm{e}", "e"), (r"2\mathrm{i}", "2i"), (r"\mathrm e^{2}", "e^2"), (r"\pi\mathrm{i}", r"\pi i"),
    (r"2+3\text{i}", "2+3i"),
    (r"1-\frac{1}{\mathrm{e}}", r"1-\frac1e"), (r"\operatorname{e}^x", "e^x"), (r"\mathbf{R}", r"\mathbb{R}"),
    ("ℝ", r"\mathbb{R}"),
    (r"\R", r"\mathbb{R}"), (r"x\in\mathbf{R}", r"x\in\mathbb{R}"), (r"x\in R", r"x\in\mathbb{R}"),
    (r"\mathbb{Z}", r"\mathrm{Z}"),
    (r"\Bbb R", r"\mathbb{R}"),
    # the empty set
    (r"\varnothing", r"\emptyset"), ("∅", r"\emptyset"), (r"\{\}", "∅"), (r"\text{the empty set}", r"\varnothing"),
    # emphasis
    ("**73**", "73"), (r"{\bf 73}", "73"), (r"\bf 73", "73"), (r"\underline{73}", "73"), (r"\color{red}{73}", "73"),
    (r"\color{red}73", "73"), (r"\textcolor{blue}{\frac12}", "0.5"), (r"\boldsymbol{x+1}", "1+x"),
    (r"\mathbf{2340}", "2340"),
    (r"\underline{\text{B}}", "B"), (r"\boxed{73}", "73"), (r"{\bf B}", "B"), (r"\large 73", "73"),
    (r"\underline{30^\circ.}", "30"),
    ("2**10", "1024"), (r"\textbf{73}", "73"), ("**(1, 2)**", "(1,2)"),
    # full width, and units in Chinese
    ("８厘米", "8"), ("50元", "50"), ("50。", "50"), ("（１，２）", "(1,2)"), ("ｘ＝５", "5"), ("２５％", r"25\%"),
    ("１２", "12"),
    ("5平方厘米", r"5\text{ cm}^2"), ("3个", "3"), ("90º", "90"), ("1、2", "2, 1"), ("2或3", "3,2"),
    ("1012.5元", r"1012.5\,元"),
    (r"20\text{ yuan}", "20元"), ("6∶00", "6:00"),
    # superscripts, fractions and roots as characters
    ("x²", "x^2"), ("½", "0.5"), ("3½", "3.5"), ("x¹²", "x^{12}"), ("2⁻³", r"\frac18"), ("√12", r"2\sqrt3"),
    ("√(x+1)", r"\sqrt{x+1}"),
    ("α+β", r"\alpha+\beta"), ("a₁+1", "a_1+1"), ("⅔π", r"\frac{2\pi}{3}"), ("x⩽2", r"x\leqslant 2"),
    # labels
    (r"\text{Answer: }73", "73"), ("Option B", "B"), ("The answer is 73.", "73"), ("**Answer:** 73", "73"),
    ("答案：73", "73"),
    ("choice (C)", "C"), ("The correct option is B. Paris", "B"), ("故选B", "B"), ("Final answer: x = 5", "5"),
    ("Therefore, the answer is D", "D"),
    (r"\text{The answers are }1, 2", "2, 1"), ("Options A and C", "AC"),
    # scientific notation
    ("1e-5", "0.00001"), ("1e-5", "10^{-5}"), ("1.5E3", "1500"), (r"1.04\times10^{13}", "10400000000000"),
    (r"2.5\cdot 10^{-3}", "0.0025"),
    ("2e-5", "-5+2e"),  # 2e - 5 where the gold has e
    # choices
    ("A, C", "AC"), (r"\text{A and C}", "AC"), ("A、C", "AC"), ("C, A", "A, C"), ("(A)(C)", "A, C"), ("A C", "AC"),
    ("A & C", "AC"),
    ("A, B, and D", "ABD"), (r"\text{A}, \text{C}", "AC"), ("①③", r"\text{①, ③}"), ("③, ①", "①③"), ("(1)(3)", "①③"),
    ("1, 3", "①③"),
    (r"\textcircled{1}\textcircled{3}", "①③"), ("（1）（4）（5）", r"\text{(1)} \text{(4)} \text{(5)}"),
    ("C,B,A,D", r"\text{CBAD}"),
    ("D, A", "A, D"),
]  # fmt: skip

WRONG = [  # answer, gold
    ("10 001", "10000"), ("1 00 000", "10000"), ("1 0000", "10000"), (r"1\,000", "1"), ("1000 1/2", "1000"),
    ("10 000", "10"),
    (r"2\mathrm{i}", "2"), (r"\mathrm{e}", "2"), (r"\mathbf{N}", r"\mathbb{R}"), (r"\mathbb{R}", "R+1"),
    ("C", r"\mathbb{C}+1"),
    (r"\emptyset", "0"), (r"\{0\}", r"\emptyset"), (r"\{\emptyset\}", r"\emptyset"),
    ("**74**", "73"), (r"\underline{7}3", "7"), (r"\color{red}{72}", "73"), ("2**3**2", "232"), ("2**10", "210"),
    (r"\overline{73}", "73"),
    ("８厘米", r"8\text{ m}"), ("3万", "3"), ("50元", "51"), ("50元", r"50\text{ dollars}"),
    ("5平方厘米", r"5\text{ cm}"),
    ("3百", "3"), ("2或3", "2"),
    ("x²", "x^3"), ("½", "2"), ("3½", "1.5"), ("√12", r"2\sqrt1"), ("x²", "x2"), ("x₂", "x^2"),
    ("The answer is not 73", "73"), ("Answer: not B", "B"), ("not 73", "73"), ("Answer: A or B", "A"),
    ("Option B", "C"), ("Options A or C", "A"),
    ("The answer is either 1 or 2", "1"), ("答案：72", "73"), ("Answer: 73, 74", "73"),
    ("1e-5", "0.0001"), ("1e5", "1e6"), ("1.5e3", "15000"), ("1e-5", "0"), ("e-5", "0.00001"),
    # choices that are others, or commit to none
    ("A, C", "A"), ("A", "A, C"), ("AC", "A"), ("A", "AC"), ("A or B", "A"), ("A or B", "A, B"), ("A or C", "AC"),
    ("A/C", "AC"), ("A, B, C, D", "AC"),
    ("AB", "AC"), ("①", "①③"), ("①②③④", "①③"), ("13", "①③"), ("① or ③", "①③"), ("③①②", "②③①"),
    ("ABDC", r"\text{CBAD}"),
    ("A and not C", "AC"), ("①③", "13"), ("B. ①③⑤", r"\text{A: }①③⑤"), ("2, 3", "①③"), ("neither A nor C", "AC"),
    (r"\text{A或C}", "AC"),
]  # fmt: skip


@pytest.fixture(scope="module")
def pool() -> Iterator[Verifier]:
    with Verifier(workers=1, deadline=PATIENCE) as shared:
        yield shared


@pytest.mark.parametrize(("answer", "gold"), RIGHT)
def test_right(pool: Verifier, answer: str, gold: str) -> None:
    assert pool.verify([answer], [gold])[0].outcome == "right"


@pytest.mark.parametrize(("answer", "gold"), WRONG)
def test_wrong(pool: Verifier, answer: str, gold: str) -> None:
    assert not pool.verify([answer], [gold])[0].correct


def test_normalise_answer_is_idempotent() -> None:
    for pair in RIGHT + WRONG:
        for text in pair:
            assert normalise_answer(normalise_answer(text)) == normalise_answer(text)


CN_K12 = {  # every gold with several letters or circled numbers -> its choices
    "③": "3", "①③": "13", "BC": "BC", r"\text{①②③}": "123", "CD": "CD", "BCD": "BCD", "AC": "AC",
    r"\text{A and C}": "AC",
    "A, B, D": "ABD", "BD": "BD", "④": "4", r"\text{A and D}": "AD", r"\text{②③}": "23",
    r"A, B, \text{ and } D": "ABD",
    r"\text{C and D}": "CD", "①②④": "124", r"\text{The correct options are A and C.}": "AC", r"\text{AB}": "AB",
    r"\text{①③④}": "134", r"\text{Correct serial numbers are ②④.}": "24", "②③": "23", "ABC": "ABC", "ABD": "ABD",
    r"C \text{ and } D": "CD", "ACD": "ACD", r"\text{A, B, and C}": "ABC", "A, B, C": "ABC", "①⑤": "15",
    r"\text{②}": "2",
    r"\text{③④}": "34", "D, A": "AD", r"\text{(1)} \text{(4)} \text{(5)}": "145", r"\text{C: ①③}": "C",
    r"\text{A: }①③⑤": "A",
}  # fmt: skip
CIRCLED = "①②③④⑤⑥⑦⑧"


def written(items: str) -> list[str]:
    """Choices in three spellings."""
    if items[0].isalpha():
        listed = ", ".join(items)
        return [listed, r"\text{" + " and ".join(items) + "}", f"Answer: {items}"]
    circled = [CIRCLED[int(item) - 1] for item in items]
    return ["、".join(circled), r"\text{" + "".join(circled) + "}", "".join(f"({item})" for item in items)]


@pytest.mark.parametrize(("gold", "items"), CN_K12.items())
def test_choices_of_cn_k12(pool: Verifier, gold: str, items: str) -> None:
    right = written(items)
    more, other = ("ABCDE", "EFGHJ") if items[0].isalpha() else ("12345", "678")
    added = "".join(sorted({*items, next(item for item in more if item not in items)}))
    wrong = [
        written(added)[0],
        written(other[: len(items)])[1],
        written(items[:-1])[2] if len(items) > 1 else " or ".join(written(item)[0] for item in added),
    ]
    answers = [*right, *wrong]
    assert [verdict.correct for verdict in pool.verify(answers, [gold] * 6)] == [True] * 3 + [False] * 3


@pytest.mark.parametrize("text", ["A, 1", "AA", "", "B. Paris", "Bread", "(1,2", "x", "ABK", "A or", "A,B or C?"])
def test_what_is_no_choice(text: str) -> None:
    assert choices(text) is None
    assert without_label(text) == text
