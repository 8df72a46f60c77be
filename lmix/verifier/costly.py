"""Detection of answers that would make algebra hang, by their text. Runs in linear time."""

import math
import re

MAX_NESTING = 50
MAX_TOWER = 3
_MAX_EXPONENT = 10**6
_COSTLY = re.compile(
    r"\^\s*[{(]?\s*-?\s*\d[\d,]{6,}"  # an exponent of more than 6 digits
    r"|\^\w+\^\w+\^"  # a tower without brackets
    r"|(?<!\d)\d{5,}\s*[})]*\s*!|!\s*[)}\]]+\s*!"  # a factorial of a large number, or of a factorial
)
_POWER_AS_EXPONENT = re.compile(r"\^\s*[{(]?\s*-?\s*(\d{1,6})\s*\^\s*[{(]?\s*(\d{1,6})")
_BRACKETS = re.compile(r"(\^\s*)?([(\[{])|([)\]}])|\^")


def is_costly(text: str) -> bool:
    """Whether a text is too costly to evaluate: deeply nested brackets or exponents, a huge exponent or factorial."""
    if _COSTLY.search(text):
        return True
    for power in _POWER_AS_EXPONENT.finditer(text):
        base, exponent = int(power[1]), int(power[2])
        if base > 1 and exponent * math.log(base) > math.log(_MAX_EXPONENT):
            return True
    is_exponent: list[bool] = []  # for each open bracket
    tower = 0
    for token in _BRACKETS.finditer(text):
        if "^" in token.group() and tower + 1 >= MAX_TOWER:
            return True
        if token.group(2):
            is_exponent.append(token.group(1) is not None)
            tower += is_exponent[-1]
        elif token.group(3) and is_exponent:
            tower -= is_exponent.pop()
        if len(is_exponent) > MAX_NESTING:
            return True
    return False
