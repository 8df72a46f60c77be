"""Equality of sympy expressions, relative to their size. Used in verifier workers only, because it imports sympy.

Math-Verify compares with `evalf(chop=True)`, which replaces everything smaller than 1e-15 by zero, also inside an
expression (its issue 14). 2^-60 then equals 2^-98, and x + 2^-60 equals x. Importing this module patches Math-Verify to
compare with `equal`, also the parts of intervals, sets and relations.
"""

from collections.abc import Iterator
from typing import Any

import sympy
from math_verify import grader
from sympy.core.function import AppliedUndef

from lmix.verifier.plain_numbers import Plain

_DIGITS = 15
_MIN_PRECISION = 200
_MAX_PRECISION = 20_000
_POINTS = ((757, 1009), (-1531, 619), (3011, 887))  # p / q of the first variable at each point
_UNSAMPLED = (sympy.Integral, sympy.Sum, sympy.Product, sympy.Limit, sympy.Derivative, AppliedUndef)


def equal(a: Any, b: Any) -> bool | None:
    """Whether two expressions have the same value.

    Expressions with variables are compared at three points. The precision grows with the number of digits in the
    expressions. None if the comparison is not possible, as for matrices and unknown functions.
    """
    if not (isinstance(a, sympy.Expr) and isinstance(b, sympy.Expr)):
        return None
    a, b = exact(a), exact(b)
    if a == b:
        return not a.has(sympy.nan, sympy.zoo)
    if a.is_Rational and b.is_Rational:
        return False
    if a.has(sympy.nan, sympy.zoo, sympy.oo, -sympy.oo) or b.has(sympy.nan, sympy.zoo, sympy.oo, -sympy.oo):
        return False
    if a.has(*_UNSAMPLED) or b.has(*_UNSAMPLED):
        return None
    difference = a - b
    verdicts = [verdict for point in _points(difference) if (verdict := _is_zero(point)) is not None]
    return all(verdicts) if verdicts else None


def exact(expression: Any) -> Any:
    """Evaluate an expression exactly: decimals become fractions, and the variable i becomes the imaginary unit."""
    known = {number: sympy.Rational(str(number)) for number in expression.atoms(sympy.Float)}
    known |= {symbol: sympy.I for symbol in expression.free_symbols if symbol.name == "i"}
    return expression.xreplace(known).doit()


def _points(expression: Any) -> Iterator[Any]:
    """The expression itself if it is a number, otherwise its values at the sample points."""
    symbols = sorted(expression.free_symbols, key=str)
    if not symbols:
        yield expression
        return
    for top, bottom in _POINTS:
        yield expression.subs(
            {symbol: sympy.Rational(top + 130 * place, bottom + 14 * place) for place, symbol in enumerate(symbols)}
        )


def _is_zero(difference: Any) -> bool | None:
    """Whether a number is 0 to the precision of `_precision`, relative to the terms of its sum."""
    if difference.is_Rational:
        return bool(difference == 0)
    if difference.has(sympy.nan, sympy.zoo, sympy.oo, -sympy.oo):
        return None
    # sympy raises its working precision until 15 digits are certain, or up to `maxn` if they cancel
    value = sympy.expand_mul(difference).evalf(_DIGITS, maxn=_precision(difference))
    parts = value.as_real_imag()
    if not all(part.is_Number for part in parts):
        return None
    return all(part == 0 or (part.is_Float and part._prec == 1) for part in parts)


def _precision(number: Any) -> int:
    """Decimal digits to evaluate: a minimum, plus twice the digits and exponents that occur in the number."""
    digits = sum(len(str(abs(part))) for atom in number.atoms(sympy.Rational) for part in (atom.p, atom.q))
    for power in number.atoms(sympy.Pow, sympy.exp):
        exponent = power.as_base_exp()[1]
        digits += min(int(abs(exponent)), _MAX_PRECISION) if exponent.is_Rational else 0
    return min(_MIN_PRECISION + 2 * digits, _MAX_PRECISION)


def is_rounding(decimal: Plain, number: Any) -> bool:
    """Whether a decimal is the rounded value of an exact real non-integer, to within half a unit of its last place."""
    if not isinstance(number, sympy.Expr) or number.atoms(sympy.Float) or not decimal.may_be_rounded:
        return False
    value = exact(number)
    if value.free_symbols or value.is_integer or not value.is_extended_real or value.has(*_UNSAMPLED):
        return False
    error = (value - sympy.Rational(decimal.value)).evalf(_DIGITS, maxn=_MIN_PRECISION)
    return bool(abs(error) <= sympy.Rational(decimal.half_a_place))


_simplify_and_compare, _compare_symbols = grader.sympy_symbolic_eq, grader.sympy_compare_symbols


def _compare(a: Any, b: Any, *_: Any) -> bool:
    verdict = equal(a, b)
    return _simplify_and_compare(a, b) if verdict is None else verdict


grader.sympy_numeric_eq = _compare
grader.sympy_compare_symbols = lambda a, b: _compare_symbols(a, b) or bool(equal(a, b))  # 2x - x is x, (1 + i) - 1 is i
grader.sympy_symbolic_eq = lambda a, b: False  # called after `_compare` returned False, which is already final
