# ruff: noqa: RUF001 (full-width colons)
r"""Multiple-choice answers, such as A, (B) bread and butter, A and C, ①③; and the words that introduce them."""

import re
from typing import NamedTuple

from lmix.verifier.characters import to_latex

_CIRCLED = "①②③④⑤⑥⑦⑧⑨⑩⑪⑫⑬⑭⑮⑯⑰⑱⑲⑳"
_LABEL = re.compile(
    r"^((?:\s|\$|\\text\s*\{)*)(?:\*\*)?"
    r"(?:(?:hence|therefore|thus|so)\b,?\s*)?(?:the\s+)?(?:(?:final|correct|right)\s+)*(?:"
    r"(?:answers?|ans|options?|choices?|solutions?|results?|(?:serial\s+)?numbers?|statements?)"
    r"(?:\s+(?:is|are)\b\s*[:：]?|\s*[:：=])"
    r"(?:\s*\b(?:the\s+)?(?:options?|choices?|statements?)(?![A-Za-z]))?"
    r"|(?:options?|choices?)(?=\s+\(?(?-i:[A-J]{1,10})(?![A-Za-z]))"
    r"|故?选|答案?[是为:：])\s*[:：]?(?:\*\*)?\s*",
    re.IGNORECASE,
)
_LAYOUT = re.compile(r"\\(?:text|math)[a-z]*\s*(?=\{)|\\[()\[\],;: ]|\\q?quad(?![A-Za-z])|[${}~]|\*\*")
_CIRCLE = re.compile(r"\\(?:textcircled|circled)\s*\{?\s*(1\d|20|\d)\s*\}?")
_ITEM = re.compile(rf"\(([A-J])\)|\((\d\d?)\)|([A-J])(?![a-z])|([{_CIRCLED}])|(\d\d?)")
_JOINT = re.compile(r"\s*(?:(?:,\s*)?(?:\band\b|&|[和与及])|[,;])\s*|\s+")
_HEDGE = re.compile(r"\s*(?:(?:,\s*)?\bor\b|/|或)\s*", re.IGNORECASE)
_CHOICE = re.compile(r"\(([A-J])\)|([A-J])(?:[.):]|$)")
_MARK = re.compile(r"\(?([A-J])[.):]")
_MAY_NAME_ANOTHER = re.compile(r"(?<![A-Za-z0-9])[A-J](?![A-Za-z0-9])|(?<=[.):])\W*(?:and|or)\b")


class Choices(NamedTuple):
    """An answer that consists of choices only."""

    items: tuple[str, ...]
    """Letters, or numbers as digits."""
    circled: bool
    """Whether the numbers certainly denote statements (①) and not values."""
    in_parentheses: bool
    """Whether the numbers may denote statements: (1)(3)."""
    in_order: bool
    """Whether the order matters, as in CBAD; it does not in AC or "C, A"."""
    hedged: bool
    """Whether the answer offers alternatives without deciding: "A or B"."""


def without_label(text: str) -> str:
    """An answer without the words that introduce it: "Answer: ", "The correct option is", "Option" before a letter."""
    match = _LABEL.match(text)
    return match[1] + text[match.end() :] if match and text[match.end() :].strip("} .") else text


def choices(text: str) -> Choices | None:
    """The choices that an answer consists of; None for any other answer."""
    text = _CIRCLE.sub(lambda number: _CIRCLED[int(number[1]) - 1] if int(number[1]) else "", text)
    text = " ".join(_LAYOUT.sub(" ", to_latex(text)).split()).strip(" .,")
    items: list[str] = []
    circled, in_parentheses, hedged, joined, position = False, True, False, False, 0
    while item := _ITEM.match(text, position):
        letter, number, bare_letter, circle, digits = item.groups()
        items.append(letter or bare_letter or number or digits or str(_CIRCLED.index(circle) + 1))
        circled = circled or circle is not None
        in_parentheses = in_parentheses and number is not None
        position = item.end()
        if position == len(text):
            break
        if joint := _HEDGE.match(text, position) or _JOINT.match(text, position):
            hedged = hedged or bool(_HEDGE.fullmatch(joint.group()))
            joined, position = True, joint.end()
        elif digits:  # "12" is not a choice of 1 and 2
            return None
    if item is None or len(set(items)) < len(items) or len({item.isalpha() for item in items}) > 1:
        return None
    ranks = [ord(item) if item.isalpha() else int(item) for item in items]
    return Choices(tuple(items), circled, in_parentheses, not joined and ranks != sorted(ranks), hedged)


def same_choices(answer: str, gold: str) -> bool | None:
    """Judge two answers as choices; None if they are not both choices, or differ and may be something else."""
    a, g = choices(answer), choices(gold)
    if a is None or g is None or not (g.items[0].isalpha() or g.circled or (a.circled and g.in_parentheses)):
        return None
    if a.hedged or (g.hedged and len(a.items) < len(g.items)):
        return False
    if a.items == g.items or (not a.in_order and not g.in_order and set(a.items) == set(g.items)):
        return True
    return False if g.circled else None


def leading_choice(text: str) -> str | None:
    """The letter of "B", "(B)", "B. 12" or "(B) 12"; None for anything else. The text must have no LaTeX commands."""
    match = _CHOICE.match(text)
    return None if match is None else match[1] or match[2]


def marked_choice(text: str) -> str | None:
    """The letter of an unnormalised "B. 12" or "(B) bread and butter"; None if the text may name several choices."""
    text = re.sub(r"^[\s$]*(?:\\(?:text|math)\w*\s*\{)?", "", text.replace("**", ""))  # ignore bold in Markdown
    match = _MARK.match(text)
    return match[1] if match and not _MAY_NAME_ANOTHER.search(text, match.end()) else None
