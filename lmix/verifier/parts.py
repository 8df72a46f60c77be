r"""The parts of a normalised answer: items of a list, entries of a matrix, sides of an equation, the name in `x=5`."""

import re
from collections.abc import Sequence
from itertools import product

from lmix.verifier.units import TEXT, split_unit, unwrap_text

RELATION = re.compile(r"[=<>]|\\(?:le|ge|ne|neq|lt|gt|in|approx|equiv)(?![A-Za-z])")
_CUP = re.compile(r"\\cup(?![A-Za-z])\s?")
_ASSIGNMENT = re.compile(
    r"(?:\\?[A-Za-z]+(?:_(?:\w|\{\w+\}))?(?:\([A-Za-z]\))?|\([A-Za-z](?:,[A-Za-z])+\))(?:=|\\in(?![A-Za-z])\s?)"
)
_MATRIX = re.compile(r"\\begin\{pmatrix\}(.*)\\end\{pmatrix\}", re.DOTALL)
_FUNCTIONS = (
    "frac sqrt cdot times div pm mp pi log ln lg exp sin cos tan cot sec csc arcsin arccos arctan binom circ infty "
    "overline lfloor rfloor lceil rceil lvert rvert deg begin end"
)
_NUMBER_COMMAND = re.compile(rf"\\(?:{'|'.join(_FUNCTIONS.split())})(?![A-Za-z])|{TEXT}")
_LETTER = re.compile(r"\\[A-Za-z]+|[^\W\d_]")


def split_list(text: str) -> tuple[str, list[str]] | None:
    r"""The brackets and items of a list; None for anything else.

    The brackets are "" for a set or a bare list, and otherwise the pair as written: "()", "[)" and so on. In a set or
    bare list, an item with \pm counts as two.
    """
    if re.fullmatch(TEXT, text):
        text = unwrap_text(text)
    brackets, inner = "", text
    if text.startswith(r"\{") and text.endswith(r"\}"):
        inner = text[2:-2]
    elif text[:1] in ("(", "[") and text[-1:] in (")", "]"):
        brackets, inner = text[0] + text[-1], text[1:-1]
    items = _split_at(",;", inner)
    if items is None:  # the last bracket does not close the first: "(1,2),(3,4)", "(x+1)(x-1)"
        brackets, inner = "", text
        items = _split_at(",;", text) or [text]
    if not brackets:
        items = [signed for item in items for signed in _signs(item)]
    if len(items) == 1 and (brackets or inner in (text, "")):
        return None
    return brackets, items


def _split_at(separators: str, text: str) -> list[str] | None:
    """The parts between separators outside brackets; None if a bracket is closed that was not opened."""
    parts, start, depth = [], 0, 0
    for position, character in enumerate(text):
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
            if depth < 0:
                return None
        elif character in separators and depth == 0:
            parts.append(text[start:position])
            start = position + 1
    return [*parts, text[start:]]


def _signs(text: str) -> list[str]:
    r"""The values of an expression with \pm, one for each choice of signs. With \mp, whose signs are coupled, one."""
    pieces = re.split(r"\\pm(?![A-Za-z])\s?", text)
    if len(pieces) > 3 or r"\mp" in text:
        return [text]
    values = []
    for signs in product("+-", repeat=len(pieces) - 1):
        value = pieces[0] + "".join(sign + piece for sign, piece in zip(signs, pieces[1:], strict=True))
        values.append(value.removeprefix("+"))
    return values


def pieces_of_union(text: str, as_list: tuple[str, list[str]] | None) -> list[str]:
    """The intervals of a union, or the inequalities of a bare list."""
    if r"\cup" in text:
        return _CUP.split(text)
    return as_list[1] if as_list is not None and not as_list[0] else [text]


def entries(text: str) -> list[list[str]] | None:
    """The rows of a matrix; None for anything else."""
    match = _MATRIX.fullmatch(text)
    if match is None or r"\begin" in match[1]:
        return None
    return [row.split("&") for row in match[1].removesuffix(r"\\").split(r"\\")]


def split_assignment(text: str) -> tuple[str, str]:
    r"""(`x=`, `5`) for `x=5`, likewise for f(x)=, (x,y)= and x\in; ("", text) for anything else."""
    match = _ASSIGNMENT.match(text)
    if match is None or RELATION.search(text, match.end()):
        return "", text
    return match.group(), text[match.end() :]


def sides(text: str) -> list[str]:
    """The sides of an equation or a chain of equations; [text] for anything else, including lists of equations."""
    if "=" not in text or r"\begin" in text or re.search(r"[<>:!]|\\(?:le|ge|ne|neq|in|mid|approx)(?![A-Za-z])", text):
        return [text]
    parts = _split_at("=", text)
    if parts is None or any(len(_split_at(",;", part) or []) != 1 for part in parts) or not all(parts):
        return [text]
    return parts


def letters(text: str) -> frozenset[str]:
    """The variables of a side. e, i and pi are constants, so a number has none."""
    body = _NUMBER_COMMAND.sub(" ", split_unit(text)[0])
    return frozenset(_LETTER.findall(body)) - {"e", "i"}


def alike(parts: Sequence[str]) -> list[list[str]]:
    """Group the sides of a chain by their variables. Sides of one group must have the same value."""
    groups: dict[frozenset[str], list[str]] = {}
    for part in parts:
        groups.setdefault(letters(part), []).append(part)
    return list(groups.values())
