"""Numbers that look equal and are not: size, lists, chains; and that numbers in two spellings are equal."""

import math
from collections.abc import Iterator
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmix.tasks import Verifier

PATIENCE = 100.0

UNEQUAL = [  # answer, gold
    # small numbers and small parts
    (r"\frac{1}{2^{60}}", r"\frac{1}{2^{98}}"), (r"\frac{1}{2005!}", r"\frac{1}{2004!}"),
    (r"\frac{1}{3\cdot2^{2006}}", r"\frac{2^{2005}+1}{3\cdot2^{2006}}"), (r"10^{-300}", r"10^{-301}"),
    (r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}"), (r"e^{-700}", r"e^{-701}"), (r"\sqrt{2}+2^{-2000}", r"\sqrt2"),
    (r"\sqrt{2}(1+2^{-2000})", r"\sqrt2"), (r"\sqrt2(1+e^{-2000})", r"\sqrt2"), (r"\frac{\pi}{10^{30}}", "0"),
    (r"\frac{1}{2^{60}}+\frac{1}{2^{70}}", r"\frac{1}{2^{60}}"), (r"1-\frac{1}{\mathrm{e}}", r"1+\frac{1}{\mathrm{e}}"),
    (r"\log_2(1+2^{-80})", "0"), (r"\binom{200}{100}^{-1}", r"\binom{200}{99}^{-1}"), (r"\sin 10^{-30}", "0"),
    (r"\frac{1}{2^{60}}i", r"\frac{1}{2^{61}}i"), (r"10^{-20}", r"-10^{-20}"), ("1e-20", "1e-21"),
    # ... of expressions, intervals, matrices and relations
    (r"x+\frac{1}{2^{60}}", "x"), (r"\frac{x}{2^{60}}", r"\frac{x}{2^{70}}"), (r"x^2+10^{-20}x", "x^2"),
    (r"\left[0,\frac{1}{2^{60}}\right]", r"\left[0,\frac{1}{2^{70}}\right]"),
    (r"x<\frac{1}{2^{60}}", r"x<\frac{1}{2^{70}}"),
    (r"0\le x\le\frac{1}{2^{60}}", r"[0,\frac{1}{2^{70}}]"), (r"\{10^{-20}\sqrt2,1\}", r"\{10^{-21}\sqrt2,1\}"),
    (r"\begin{pmatrix}10^{-20}\pi\\1\end{pmatrix}", r"\begin{pmatrix}10^{-21}\pi\\1\end{pmatrix}"),
    (r"x=10^{-20}\sqrt2", r"x=10^{-21}\sqrt2"), (r"1.00000000000000000001\pi", r"\pi"),
    # large ones
    (r"10^{300}+1", r"10^{300}"), (r"2005!+1", "2005!"), (r"\sqrt{10^{300}+1}", r"10^{150}"),
    (r"\pi^{500}", r"\pi^{501}"),
    (r"\ln(10^{300}+1)", r"300\ln 10"), (r"\lfloor 10^{40}\pi\rfloor", r"10^{40}\pi"),
    # decimals that are no rounding, or round to next to nothing
    ("3.1415926535", r"\pi"), ("3.14159", r"\pi"), ("0.000001", r"\frac{1}{1500000}"),
    ("0.000000", r"\frac{1}{3000000}"),
    ("0.333333\\pi", r"\frac{\pi}{3}"), ("1.414213", r"\sqrt2"), ("0.0000", r"e^{-30}"),
    ("2.000000", r"\sqrt{4.000001}"),
    # functions of the sign
    ("|x|", "x"), (r"\sqrt{x^2}", "x"), (r"\ln x^2", r"2\ln x"),
    # lists of three-digit numbers, and numbers with thousands
    ("81256", "81, 256"), ("81, 256", "81256"), ("121144169", "121, 144, 169"), ("100, 200", "100200"),
    ("121,144,169", "169,144,121"), ("1, 000", "1000"), ("(100, 200)", "100200"), ("121 144 169", "121, 144, 169"),
    ("(121, 144)", "(144, 121)"), ("256, 81", "81256"), ("100, 200, 300", "100, 200"), ("1 234", "1 235"),
    # chains whose sides disagree
    ("7 = 5", "5"), (r"\frac12=\frac13", r"\frac13"), ("1=2=3=4=5", "5"), ("x = 1 = 5", "5"), ("x=1=5", "x=5"),
    ("x+y=1=3", "x+y=3"), ("f(x)=2x=3x", "3x"), ("2+2=5", "5"), ("0.56 = 57\\%", "0.56"), (r"\pi = 3", "3"),
    (r"\frac{\pi}{3}=61^\circ", r"\frac{\pi}{3}"), ("(1,2)=(3,4)", "(3,4)"), (r"\sqrt8=2\sqrt3", r"2\sqrt3"),
    ("a=1=2,b=3", "a=2,b=3"), (r"S=2\pi=9\pi", r"9\pi"), ("5 = 5.0000001", "5"), ("x = 5 = 6", "5"),
    ("10^{-20}=10^{-21}", "10^{-21}"),
    (r"1\text{ cm}=5\text{ m}", r"5\text{ m}"), ("46_{10}", r"101101_{(2)} = 45_{(10)} = 63_{(7)}"),
    # as reported to Math-Verify (issue 14)
    ("n=1, 2, 3", "n=2, 3, 4"), ("D = (0, 1.5)", "D = (0, 1)"),
    (r"21, 36, \text{ and } 82", r"19, 46, \text{ and } 82"),
    ("2021", r"\pm 2021"), ("1:00", "12:00"), (r"1, 3, 5, \ldots, 2n-1", r"1, 2, \ldots, n"),
    (r"1:4:9:\ldots", r"1:2:3:\ldots"),
]  # fmt: skip

EQUAL = [  # answer, gold
    (r"\frac{1}{2^{60}}", "2^{-60}"), (r"\frac{2005}{2005!}", r"\frac{1}{2004!}"),
    (r"\frac{2}{2^{99}}", r"\frac{1}{2^{98}}"),
    (r"\frac{1+2^{-2005}}{6}", r"\frac{2^{2005}+1}{3\cdot2^{2006}}"), (r"\sqrt{10^{-300}}", r"10^{-150}"),
    (r"\ln 10^{-300}", r"-300\ln 10"), (r"2\cdot 2^{2004}", r"2^{2005}"), (r"\sqrt2+\sqrt3", r"\sqrt{5+2\sqrt6}"),
    (r"e^{i\pi}", "-1"), (r"\frac{1+i}{1-i}", "i"), (r"\sin 15^\circ", r"\frac{\sqrt6-\sqrt2}{4}"),
    (r"\cos(-480^\circ)", r"-\frac12"),
    (r"\frac{x}{2^{60}}", r"2^{-60}x"), (r"\frac{1}{\sqrt3-1}", r"\frac{\sqrt3+1}{2}"), (r"\sin^2 x+\cos^2 x", "1"),
    (r"x<2^{-60}", r"x<\frac{1}{2^{60}}"), (r"[0,2^{-60}]", r"[0,\frac{1}{2^{60}}]"), ("2005!/2004!", "2005"),
    ("3.141593", r"\pi"), ("3.1415926536", r"\pi"), ("4.123105625617661", r"\sqrt{17}"), ("0.333333", r"\frac{1}{1+2}"),
    ("0.00333333", r"\frac{1}{300}"), ("1414213.562373", r"10^6\sqrt2"),
    ("169, 144, 121", "121, 144, 169"), ("121,144,169", "169, 144, 121"), ("81,256", "81256"), ("81,256", "81, 256"),
    ("x = 5", "5"), ("2+3 = 5", "5"), ("x = 2+3 = 5", "5"), (r"S=\pi r^2=9\pi", r"9\pi"), (r"\frac24=\frac12", "0.5"),
    ("0.56 = 56\\%", "0.56"), (r"\frac{\pi}{3}=60^\circ", r"\frac{\pi}{3}"), (r"\sin 390^\circ=\frac12", r"\frac12"),
    (r"\left(\frac{1+i}{1-i}\right)^{2006}=-1", "-1"), ("a+b=5", "5"), ("5", "a+b=5"), ("a=1+1=2,b=3", "b=3,a=2"),
    # a gold's sides are all right
    ("0.56", r"0.56 = 56\%"), (r"56\%", r"0.56 = 56\%"), (r"56\%=0.56", r"0.56 = 56\%"),
    ("45", r"101101_{(2)} = 45_{(10)} = 63_{(7)}"),
    ("101101_2", r"101101_{(2)} = 45_{(10)} = 63_{(7)}"), (r"\frac12", r"\sin 390^\circ=\frac{1}{2}"),
]  # fmt: skip


@pytest.fixture(scope="module")
def pool() -> Iterator[Verifier]:
    with Verifier(workers=1, deadline=PATIENCE) as shared:
        yield shared


@pytest.mark.parametrize(("answer", "gold"), UNEQUAL)
def test_unequal(pool: Verifier, answer: str, gold: str) -> None:
    assert not pool.verify([answer], [gold])[0].correct


@pytest.mark.parametrize(("answer", "gold"), EQUAL)
def test_equal(pool: Verifier, answer: str, gold: str) -> None:
    assert pool.verify([answer], [gold])[0].outcome == "right"


EXACT = [  # with a place for a rational
    "{}", r"({})\cdot\sqrt2", r"({})\pi", r"({})e", r"({})\ln 3", r"({})x",
    r"\sqrt{{2}}+({})", "({})i", r"\sqrt{{3}}\cdot({})+x",
]  # fmt: skip


def spelled(value: Fraction, way: int) -> str:
    """A fraction as one of four texts; all are exact."""
    top, bottom = value.numerator, value.denominator
    return [
        rf"\frac{{{top}}}{{{bottom}}}",
        rf"{top}\cdot\frac{{1}}{{{bottom}}}",
        rf"\frac{{{top * 6}}}{{{bottom * 6}}}",
        rf"\frac{{{top + bottom}}}{{{bottom}}}-1",
    ][way]


sizes = st.integers(-300, 300)
mantissas = st.integers(1, 10**6)


def sized(mantissa: int, size: int) -> Fraction:
    return mantissa * Fraction(10) ** (size - int(math.log10(mantissa)))


exhaustive = settings(deadline=None, derandomize=True, max_examples=150, suppress_health_check=list(HealthCheck))


@given(
    mantissa=mantissas,
    size=sizes,
    difference=st.integers(1, 300),
    form=st.sampled_from(EXACT),
    ways=st.tuples(*[st.integers(0, 3)] * 2),
)
@exhaustive
def test_a_tiny_relative_difference_is_one(pool, mantissa, size, difference, form, ways):
    value = sized(mantissa, size)
    other = value * (1 + Fraction(1, 10**difference))
    answer, gold = (form.format(spelled(v, way)) for v, way in zip((value, other), ways, strict=True))
    assert not pool.verify([answer], [gold])[0].correct


@given(mantissa=mantissas, size=sizes, form=st.sampled_from(EXACT), ways=st.tuples(*[st.integers(0, 3)] * 2))
@exhaustive
def test_two_spellings_of_a_number_are_equal(pool, mantissa, size, form, ways):
    answer, gold = (form.format(spelled(sized(mantissa, size), way)) for way in ways)
    assert pool.verify([answer], [gold])[0].correct
