r"""Plain numbers in normalised answers: integers, decimals, fractions, mixed numbers, 1.5e-7, numerals with a base."""

import re
from fractions import Fraction
from typing import NamedTuple

from lmix.verifier.units import unwrap_text

_RATIONAL = re.compile(r"([+-]?)(?:(\d+)?\\frac\{(-?\d+)\}\{(-?\d+)\}|(\d+) (\d+)/(\d+)|(\d+\.?\d*))")
_REPEATING = re.compile(r"([+-]?)(\d*)\.(\d*)\\overline\{?(\d+)\}?")
_SCIENTIFIC = re.compile(
    r"([+-]?)(?:(\d+\.?\d*)[eE]([+-]?\d{1,4})|(?:(\d+\.?\d*)(?:\\times ?|\\cdot ?|\*))?10\^(?:(\d)|\{([+-]?\d{1,4})\}))"
)
_ENOUGH_DECIMALS = 6
_ENOUGH_DIGITS = 4
_NUMERAL = re.compile(r"(-?[0-9A-Z.]+)(?:_(?:(\d)|\{?(\d+)\}?))?")


class Plain(NamedTuple):
    """The value of a plain number."""

    value: Fraction
    decimals: int
    """Number of decimals, so that the last digit stands for 10^-decimals; 0 if the number is not a decimal."""

    @property
    def may_be_rounded(self) -> bool:
        """Whether the number has enough digits to count as a rounded form of an exact value."""
        return self.decimals >= _ENOUGH_DECIMALS and abs(self.value) * 10**self.decimals >= 10 ** (_ENOUGH_DIGITS - 1)

    @property
    def half_a_place(self) -> Fraction:
        """Half a unit of the last decimal place."""
        return Fraction(1, 2 * 10**self.decimals)


def plain_number(text: str) -> Plain | None:
    r"""The value of a plain number; None for anything else.

    Plain numbers are integers, decimals (also repeating ones, which are exact, and ones times a power of ten), \frac of
    integers, and mixed numbers.
    """
    match = _RATIONAL.fullmatch(text)
    if match is None:
        return _repeating_decimal(text) or _scientific(text)
    sign, whole, top, bottom, plain_whole, plain_top, plain_bottom, decimal = match.groups()
    if decimal is not None:
        value, decimals = Fraction(decimal), len(decimal.partition(".")[2])
    elif int(bottom or plain_bottom) == 0:
        return None
    else:
        value, decimals = Fraction(int(top or plain_top), int(bottom or plain_bottom)), 0
        value += int(whole or plain_whole or 0)
    return Plain(-value if sign == "-" else value, decimals)


def _repeating_decimal(text: str) -> Plain | None:
    r"""The value of 0.1\overline{6}."""
    match = _REPEATING.fullmatch(text)
    if match is None:
        return None
    sign, whole, fixed, period = match.groups()
    tail = Fraction(int(period), 10 ** len(period) - 1)
    value = (int(whole + fixed or 0) + tail) / 10 ** len(fixed)
    return Plain(-value if sign == "-" else value, 0)


def _scientific(text: str) -> Plain | None:
    r"""The value of 1.5e-7, of 1.5\times10^{-7} and of 10^{-7}."""
    match = _SCIENTIFIC.fullmatch(text)
    if match is None:
        return None
    sign, mantissa, exponent, factor, digit, braced = match.groups()
    written, power = mantissa or factor or "1", int(exponent or digit or braced)
    value = Fraction(written) * Fraction(10) ** power
    decimals = max(0, len(written.partition(".")[2]) - power) if "." in written else 0
    return Plain(-value if sign == "-" else value, decimals)


def compare_plain(answer: str, gold: str) -> bool | None:
    """Compare two plain numbers exactly, except that a decimal may be a rounded fraction. None if one is not plain."""
    a, g = plain_number(answer), plain_number(gold)
    if a is None or g is None:
        return None
    if a.value == g.value:
        return True
    decimal, exact = (a, g) if a.decimals else (g, a)
    if exact.decimals or exact.value.denominator == 1 or decimal.value.denominator == 1:
        return False
    return decimal.may_be_rounded and abs(decimal.value - exact.value) <= decimal.half_a_place


def compare_numerals(answer: str, gold: str) -> bool | None:
    """Compare numerals with a base: digits and base must match. One may omit the base, as many gold answers of MATH do.

    None unless at least one has a base.
    """
    a, g = _NUMERAL.fullmatch(unwrap_text(answer)), _NUMERAL.fullmatch(unwrap_text(gold))
    if a is None or g is None or not all(re.search(r"\d", numeral[1]) for numeral in (a, g)):
        return None
    bases = {int(numeral[2] or numeral[3]) for numeral in (a, g) if numeral[2] or numeral[3]}
    return None if not bases else a[1] == g[1] and len(bases) == 1
