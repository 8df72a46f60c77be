r"""Judging an answer by its text: numbers, bases, words, lists, and the refusal of texts that would hang algebra.

Verdicts are True (right), False (wrong) or None (only algebra can tell). The algebra is a function that a caller may
supply for those parts: `lmix.tasks.verifier_worker` has one; without one, `compare` costs microseconds. Pure functions.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from itertools import product

from lmix.tasks.normalise import TEXT, normalise_answer, split_unit, unwrap_text

Judge = Callable[[str, str], bool | None]
"""(answer, gold), both normalised -> verdict."""

MAX_NESTING = 50
MAX_TOWER = 3
_COSTLY = re.compile(
    r"\^\s*[{(]?\s*-?\s*\d[\d,]{6,}"  # an exponent of more than 6 digits
    r"|\^\w+\^\w+\^"  # a tower without brackets
    r"|(?<!\d)\d{5,}\s*[})]*\s*!|!\s*[)}\]]+\s*!"  # the factorial of a large number, or of a factorial
)
_BRACKETS = re.compile(r"(\^\s*)?([(\[{])|([)\]}])|\^")
_RATIONAL = re.compile(r"([+-]?)(?:(\d+)?\\frac\{(-?\d+)\}\{(-?\d+)\}|(\d+) (\d+)/(\d+)|(\d+\.?\d*))")
_REPEATING = re.compile(r"([+-]?)(\d*)\.(\d*)\\overline\{?(\d+)\}?")
_ENOUGH_DECIMALS = 6
_NUMERAL = re.compile(r"(-?[0-9A-Z.]+)(?:_(?:(\d)|\{?(\d+)\}?))?")
_CHOICE = re.compile(r"\(([A-J])\)|([A-J])(?:[.):]|$)")
_MARK = re.compile(r"\(?([A-J])[.):]")
_MAY_NAME_ANOTHER = re.compile(r"(?<![A-Za-z0-9])[A-J](?![A-Za-z0-9])|(?<=[.):])\W*(?:and|or)\b")
_CUP = re.compile(r"\\cup(?![A-Za-z])\s?")
_RELATION = re.compile(r"[=<>]|\\(?:le|ge|ne|neq|lt|gt|in|approx|equiv)(?![A-Za-z])")
_ASSIGNMENT = re.compile(
    r"(?:\\?[A-Za-z]+(?:_(?:\w|\{\w+\}))?(?:\([A-Za-z]\))?|\([A-Za-z](?:,[A-Za-z])+\))(?:=|\\in(?![A-Za-z])\s?)"
)


def is_costly(text: str) -> bool:
    """Whether a text is a plain bomb: brackets or exponents nested too deep, a huge exponent or factorial."""
    if _COSTLY.search(text):
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


def compare(answer: str, gold: str, algebra: Judge | None = None) -> bool | None:
    """Judge an answer against a gold one; None is possible only when there is no `algebra`."""
    a, g = normalise_answer(answer), normalise_answer(gold)
    for alone, other in ((g, answer), (a, gold)):
        # the choice's own text is no mathematics: its "and" joins no list, and "A. 78" holds no decimal
        letter = unwrap_text(alone).strip("()")
        if re.fullmatch("[A-J]", letter) and _marked_choice(other) == letter:
            return True
    return _compare(a, g, algebra or _no_algebra)


def _no_algebra(answer: str, gold: str) -> None:
    """Tells nothing."""


def _compare(answer: str, gold: str, algebra: Judge) -> bool | None:
    if answer == gold:
        return True
    answer_name, answer_value = _split_assignment(answer)
    gold_name, gold_value = _split_assignment(gold)
    one_name = answer_name == gold_name or not (answer_name and gold_name)
    # The name goes unless the other side is an equation of its own: "y=x+1" and "x-y+1=0".
    if one_name and not _RELATION.search(answer_value) and not _RELATION.search(gold_value):
        answer, gold = answer_value, gold_value
    if answer == gold:
        return True
    answer_list, gold_list = _split_list(answer), _split_list(gold)
    if r"\cup" in answer + gold:
        # Intervals on one side may be inequalities on the other; the same union may be cut into other pieces.
        answers, golds = (_pieces(*side) for side in ((answer, answer_list), (gold, gold_list)))
        return _same_items(answers, golds, algebra) if len(answers) == len(golds) > 1 else algebra(answer, gold)
    if answer_list is None and gold_list is None:
        verdict = _compare_scalars(answer, gold)
        return algebra(answer, gold) if verdict is None else verdict
    if answer_list is None or gold_list is None:
        brackets, items = answer_list or gold_list or ("", [])
        scalar = answer if answer_list is None else gold
        if not brackets and len(items) == 1:
            return _compare(scalar, items[0], algebra) if answer_list is None else _compare(items[0], scalar, algebra)
        return False if _rational(split_unit(scalar)[0]) else algebra(answer, gold)
    return _compare_lists(answer_list, gold_list, algebra)


def _pieces(text: str, as_list: tuple[str, list[str]] | None) -> list[str]:
    """The intervals of a union, or the inequalities of a bare list."""
    if r"\cup" in text:
        return _CUP.split(text)
    return as_list[1] if as_list is not None and not as_list[0] else [text]


def _compare_lists(answer: tuple[str, list[str]], gold: tuple[str, list[str]], algebra: Judge) -> bool | None:
    """Sets and bare lists in any order; tuples, points and intervals in order and with the same brackets."""
    (answer_kind, answers), (gold_kind, golds) = answer, gold
    if answer_kind != gold_kind or len(answers) != len(golds):
        return False
    # "1, 2" for "a = 1, b = 2" leaves only the order to tell which is which.
    only_gold_named = all(_split_assignment(g)[0] for g in golds) and not any(_split_assignment(a)[0] for a in answers)
    if gold_kind or only_gold_named:
        return _all(_compare(a, g, algebra) for a, g in zip(answers, golds, strict=True))
    return _same_items(answers, golds, algebra)


def _all(verdicts: Iterable[bool | None]) -> bool | None:
    unknown = False
    for verdict in verdicts:
        if verdict is False:
            return False
        unknown = unknown or verdict is None
    return None if unknown else True


def _same_items(answers: Sequence[str], golds: Sequence[str], algebra: Judge) -> bool | None:
    """Whether the answers are the golds in some order."""
    left = list(answers)
    for gold in golds:
        unknown = False
        for position, answer in enumerate(left):
            verdict = _compare(answer, gold, algebra)
            if verdict:
                del left[position]
                break
            unknown = unknown or verdict is None
        else:
            return None if unknown else False
    return True


def _split_list(text: str) -> tuple[str, list[str]] | None:
    r"""The brackets and items of a list, None for anything else.

    The brackets are "" for a set or a bare list, else the pair as written: "()", "[)" and so on. An item with \pm is
    two.
    """
    if re.fullmatch(TEXT, text):
        text = unwrap_text(text)
    brackets, inner = "", text
    if text.startswith(r"\{") and text.endswith(r"\}"):
        inner = text[2:-2]
    elif text[:1] in ("(", "[") and text[-1:] in (")", "]"):
        brackets, inner = text[0] + text[-1], text[1:-1]
    items = _split_at_commas(inner)
    if items is None:  # the first bracket is not closed by the last: "(1,2),(3,4)", "(x+1)(x-1)"
        brackets, inner = "", text
        items = _split_at_commas(text) or [text]
    if not brackets:
        items = [signed for item in items for signed in _signs(item)]
    if len(items) == 1 and (brackets or inner in (text, "")):
        return None
    return brackets, items


def _split_at_commas(text: str) -> list[str] | None:
    """The parts between commas or semicolons outside brackets; None when a bracket closes that was not opened."""
    parts, start, depth = [], 0, 0
    for position, character in enumerate(text):
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
            if depth < 0:
                return None
        elif character in ",;" and depth == 0:
            parts.append(text[start:position])
            start = position + 1
    return [*parts, text[start:]]


def _signs(text: str) -> list[str]:
    r"""The values of an expression with \pm, each sign on its own; with \mp the signs hang together, so it stays."""
    pieces = re.split(r"\\pm(?![A-Za-z])\s?", text)
    if len(pieces) > 3 or r"\mp" in text:
        return [text]
    values = []
    for signs in product("+-", repeat=len(pieces) - 1):
        value = pieces[0] + "".join(sign + piece for sign, piece in zip(signs, pieces[1:], strict=True))
        values.append(value.removeprefix("+"))
    return values


def _split_assignment(text: str) -> tuple[str, str]:
    r"""(`x=`, `5`) for `x=5`, likewise for f(x)=, (x,y)= and x\in; ("", text) for anything else."""
    match = _ASSIGNMENT.match(text)
    if match is None or _RELATION.search(text, match.end()):
        return "", text
    return match.group(), text[match.end() :]


def _compare_scalars(answer: str, gold: str) -> bool | None:
    """Judge by the text alone two answers that are no lists. A unit may be left out, but not be another one."""
    (answer_body, answer_unit), (gold_body, gold_unit) = split_unit(answer), split_unit(gold)
    if answer_unit and gold_unit and answer_unit != gold_unit:
        return False
    if answer_body == gold_body:
        return True
    for judge in (_compare_rationals, _compare_numerals):
        verdict = judge(answer_body, gold_body)
        if verdict is not None:
            return verdict
    return _compare_words(answer, gold)


def _rational(text: str) -> tuple[Fraction, int] | None:
    r"""The value of a plain number (integer, decimal, \frac of integers, mixed number) and its count of decimals."""
    match = _RATIONAL.fullmatch(text)
    if match is None:
        return _repeating_decimal(text)
    sign, whole, top, bottom, plain_whole, plain_top, plain_bottom, decimal = match.groups()
    if decimal is not None:
        value, decimals = Fraction(decimal), len(decimal.partition(".")[2])
    elif int(bottom or plain_bottom) == 0:
        return None
    else:
        value, decimals = Fraction(int(top or plain_top), int(bottom or plain_bottom)), 0
        value += int(whole or plain_whole or 0)
    return (-value if sign == "-" else value), decimals


def _repeating_decimal(text: str) -> tuple[Fraction, int] | None:
    r"""The value of 0.1\overline{6}, which is exact."""
    match = _REPEATING.fullmatch(text)
    if match is None:
        return None
    sign, whole, fixed, period = match.groups()
    tail = Fraction(int(period), 10 ** len(period) - 1)
    value = (int(whole + fixed or 0) + tail) / 10 ** len(fixed)
    return (-value if sign == "-" else value), 0


def _compare_rationals(answer: str, gold: str) -> bool | None:
    """Exact, but for a decimal that rounds a fraction correctly to 6 places or more."""
    a, g = _rational(answer), _rational(gold)
    if a is None or g is None:
        return None
    decimals = max(a[1], g[1])
    one_is_rounded = decimals >= _ENOUGH_DECIMALS and min(a[1], g[1]) == 0 and a[0].denominator > 1 < g[0].denominator
    return a[0] == g[0] or (one_is_rounded and abs(a[0] - g[0]) <= Fraction(1, 2 * 10**decimals))


def _compare_numerals(answer: str, gold: str) -> bool | None:
    """Numerals with a base: same digits, same base. Either may leave the base out, as many golds of MATH do."""
    a, g = _NUMERAL.fullmatch(unwrap_text(answer)), _NUMERAL.fullmatch(unwrap_text(gold))
    if a is None or g is None or not all(re.search(r"\d", numeral[1]) for numeral in (a, g)):
        return None
    bases = {int(numeral[2] or numeral[3]) for numeral in (a, g) if numeral[2] or numeral[3]}
    return None if not bases else a[1] == g[1] and len(bases) == 1


def _compare_words(answer: str, gold: str) -> bool | None:
    r"""Words, times and choice letters: blanks, parentheses and full stops say nothing, nor does case under \text."""
    a, g = (re.sub(r"[\s()]|\.(?!\d)", "", unwrap_text(text)) for text in (answer, gold))
    if re.fullmatch(r"[\w':]+", a):
        if a == g and a.isalpha():
            return True
        case_is_free = r"\text" in answer + gold or (len(g) > 2 and g.isalpha())
        if case_is_free and a.lower() == g.lower():
            return True
    choice = _choice(gold)
    if choice is not None and choice == _choice(answer):
        return True
    gold_is_words = re.fullmatch(rf"\(?(?:{TEXT})+\)?", gold) and re.search("[A-Za-z]", g)
    return False if gold_is_words else None


def _choice(text: str) -> str | None:
    """The letter of "B", "(B)", "B. 12" or "(B) 12", None for anything else."""
    match = _CHOICE.match(unwrap_text(text))
    return None if match is None else match[1] or match[2]


def _marked_choice(text: str) -> str | None:
    """The letter of "B. 12" or "(B) bread and butter", as it was written; None where it may name several choices."""
    text = re.sub(r"^[\s$]*(?:\\(?:text|math)\w*\s*\{)?", "", text.replace("**", ""))  # Markdown's bold says nothing
    match = _MARK.match(text)
    return match[1] if match and not _MAY_NAME_ANOTHER.search(text, match.end()) else None
