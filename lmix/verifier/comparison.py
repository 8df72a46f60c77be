r"""Comparison of an answer with the gold answer by their texts: numbers, words, lists, chains of equalities.

Verdicts are True (correct), False (wrong) or None (undecidable without algebra). The caller may pass a function that
decides the undecidable parts by algebra, such as the one of `lmix.verifier.worker`. Without it, `compare` takes
microseconds. Pure functions.
"""

import re
from collections.abc import Callable, Iterable, Sequence

from lmix.verifier.choices import leading_choice, marked_choice, same_choices, without_label
from lmix.verifier.normalise import normalise_answer
from lmix.verifier.parts import (
    RELATION,
    alike,
    entries,
    letters,
    pieces_of_union,
    sides,
    split_assignment,
    split_list,
)
from lmix.verifier.plain_numbers import compare_numerals, compare_plain, plain_number
from lmix.verifier.units import TEXT, split_unit, unwrap_text

Judge = Callable[[str, str], bool | None]
"""From a normalised answer and gold answer to a verdict."""

_NUMBER_SET = re.compile(r"\\text\{([NZQRC])\}|(?<=\\in )([NZQRC])(?![A-Za-z])")
_AS_FACTOR = {"percent": r"\frac{1}{100}", "degree": r"\frac{\pi}{180}"}


def compare(answer: str, gold: str, algebra: Judge | None = None) -> bool | None:
    """Compare an answer with the gold answer. None, if the texts do not decide, is possible only without `algebra`."""
    answer, gold = without_label(answer), without_label(gold)
    verdict = same_choices(answer, gold)
    if verdict is not None:
        return verdict
    a, g = normalise_answer(answer), normalise_answer(gold)
    for alone, other in ((g, answer), (a, gold)):
        # a choice's text is not mathematics: an "and" in it does not make a list, and "A. 78" is not a decimal
        letter = unwrap_text(alone).strip("()")
        if re.fullmatch("[A-J]", letter) and marked_choice(other) == letter:
            return True
    # "121,144,169" is one number, unless the other side can only be a list
    if ";" in g:
        a = normalise_answer(answer, thousands=False)
    elif ";" in a:
        g = normalise_answer(gold, thousands=False)
    if r"\mathbb" in a + g:
        a, g = (_NUMBER_SET.sub(lambda name: rf"\mathbb{{{name[1] or name[2]}}}", text) for text in (a, g))
    return _compare(a, g, algebra or _no_algebra)


def _no_algebra(answer: str, gold: str) -> None:
    """The algebra of a caller that has none: no verdict."""


def _compare(answer: str, gold: str, algebra: Judge) -> bool | None:
    if answer == gold:
        return True
    answer_sides, gold_sides = sides(answer), sides(gold)
    if len(answer_sides) > 1 or len(gold_sides) > 1:
        return _compare_chains(answer_sides, gold_sides, algebra)
    return _compare_values(answer, gold, algebra)


def _compare_chains(answers: list[str], golds: list[str], algebra: Judge) -> bool | None:
    """Compare equations and chains of them.

    The sides of an answer must agree with each other. It is enough to match any side of the gold answer, since all of
    them are correct.
    """
    agreement = _all(
        _agree(group[0], other, algebra)
        for group in alike(answers)
        # two sides with variables are an equation to solve; three or more sides claim that all are equal
        if len(answers) > 2 or (len(answers) == 2 and not letters(group[0]))
        for other in group[1:]
    )
    if agreement is False:
        return False
    verdict = _any(_compare_values(a, g, algebra) for a in _readings(answers) for g in _readings(golds))
    return verdict if agreement or verdict is False else None


def _readings(parts: list[str]) -> list[str]:
    """The values to compare: an equation as a whole, or each number of a chain, with the name before it."""
    numbers = [part for part in parts if not letters(part)]
    names = [part for part in parts if letters(part)]
    if len(parts) == 1 or (len(parts) == 2 and names):
        return ["=".join(parts)]
    prefix = f"{names[0]}=" if names else ""
    return [prefix + value for value in numbers or names[1:]]


def _agree(first: str, second: str, algebra: Judge) -> bool | None:
    """Whether two sides of a chain have the same value. Here 56% equals 0.56, and 180 degrees equal pi."""
    (body, unit), (other_body, other_unit) = split_unit(first), split_unit(second)
    if unit != other_unit and None in (unit, other_unit) and (unit or other_unit) in _AS_FACTOR:
        first, second = (
            rf"({text})\cdot{_AS_FACTOR[name]}" if name in _AS_FACTOR else text
            for text, name in ((body, unit), (other_body, other_unit))
        )
    return _compare_values(first, second, algebra)


def _compare_values(answer: str, gold: str, algebra: Judge) -> bool | None:
    answer_name, answer_value = split_assignment(answer)
    gold_name, gold_value = split_assignment(gold)
    one_name = answer_name == gold_name or not (answer_name and gold_name)
    # Drop the name, unless the other answer is a full equation: "y=x+1" and "x-y+1=0".
    if one_name and not RELATION.search(answer_value) and not RELATION.search(gold_value):
        answer, gold = answer_value, gold_value
    if answer == gold:
        return True
    answer_list, gold_list = split_list(answer), split_list(gold)
    if r"\cup" in answer + gold:
        # One side may have intervals and the other inequalities, and a union may be split into different pieces.
        answers, golds = (pieces_of_union(*side) for side in ((answer, answer_list), (gold, gold_list)))
        return _same_items(answers, golds, algebra) if len(answers) == len(golds) > 1 else algebra(answer, gold)
    if answer_list is None and gold_list is None:
        verdict = _compare_scalars(answer, gold)
        return _compare_matrices(answer, gold, algebra) if verdict is None else verdict
    if answer_list is None or gold_list is None:
        brackets, items = answer_list or gold_list or ("", [])
        scalar = answer if answer_list is None else gold
        if not brackets and len(items) == 1:
            if items == [r"\emptyset"]:
                return False
            return _compare(scalar, items[0], algebra) if answer_list is None else _compare(items[0], scalar, algebra)
        return False if plain_number(split_unit(scalar)[0]) else algebra(answer, gold)
    return _compare_lists(answer_list, gold_list, algebra)


def _compare_lists(answer: tuple[str, list[str]], gold: tuple[str, list[str]], algebra: Judge) -> bool | None:
    """Compare sets and bare lists in any order; tuples, points and intervals in order and with the same brackets."""
    (answer_kind, answers), (gold_kind, golds) = answer, gold
    if answer_kind != gold_kind or len(answers) != len(golds):
        return False
    # If the answer is "1, 2" and the gold answer "a = 1, b = 2", only the order assigns values to names.
    only_gold_named = all(split_assignment(g)[0] for g in golds) and not any(split_assignment(a)[0] for a in answers)
    if gold_kind or only_gold_named:
        return _all(_compare(a, g, algebra) for a, g in zip(answers, golds, strict=True))
    return _same_items(answers, golds, algebra)


def _compare_matrices(answer: str, gold: str, algebra: Judge) -> bool | None:
    """Compare matrices entry by entry, and anything else by algebra."""
    answer_rows, gold_rows = entries(answer), entries(gold)
    if answer_rows is None or gold_rows is None:
        return algebra(answer, gold)
    if [len(row) for row in answer_rows] != [len(row) for row in gold_rows]:
        return False
    pairs = [pair for rows in zip(answer_rows, gold_rows, strict=True) for pair in zip(*rows, strict=True)]
    return _all(_compare(a, g, algebra) for a, g in pairs)


def _all(verdicts: Iterable[bool | None]) -> bool | None:
    unknown = False
    for verdict in verdicts:
        if verdict is False:
            return False
        unknown = unknown or verdict is None
    return None if unknown else True


def _any(verdicts: Iterable[bool | None]) -> bool | None:
    unknown = False
    for verdict in verdicts:
        if verdict:
            return True
        unknown = unknown or verdict is None
    return None if unknown else False


def _same_items(answers: Sequence[str], golds: Sequence[str], algebra: Judge) -> bool | None:
    """Whether the answers equal the gold answers in some order."""
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


def _compare_scalars(answer: str, gold: str) -> bool | None:
    """Compare two answers that are not lists, by text. A unit may be missing on one side, but must not differ."""
    (answer_body, answer_unit), (gold_body, gold_unit) = split_unit(answer), split_unit(gold)
    if answer_unit and gold_unit and answer_unit != gold_unit:
        return False
    if answer_body == gold_body:
        return True
    for judge in (compare_plain, compare_numerals):
        verdict = judge(answer_body, gold_body)
        if verdict is not None:
            return verdict
    return _compare_words(answer, gold)


def _compare_words(answer: str, gold: str) -> bool | None:
    r"""Compare words, times and choice letters, ignoring blanks, parentheses, full stops, and case under \text."""
    a, g = (re.sub(r"[\s()]|\.(?!\d)", "", unwrap_text(text)) for text in (answer, gold))
    if re.fullmatch(r"[\w':]+", a):
        if a == g and a.isalpha():
            return True
        case_is_free = r"\text" in answer + gold or (len(g) > 2 and g.isalpha())
        if case_is_free and a.lower() == g.lower():
            return True
    choice = leading_choice(unwrap_text(gold))
    if choice is not None and choice == leading_choice(unwrap_text(answer)):
        return True
    gold_is_words = re.fullmatch(rf"\(?(?:{TEXT})+\)?", gold) and re.search("[A-Za-z]", g)
    return False if gold_is_words else None
