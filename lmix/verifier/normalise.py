"""Normalisation of answers to one spelling. Pure functions that run in linear time."""

import re
from collections.abc import Callable

from lmix.verifier.characters import to_latex
from lmix.verifier.units import TEXT, unwrap_text

_ROW_END = "\0"  # replaces \\ during the rewrites, so that its second backslash does not start a command

Rewrites = list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]]
_SIZES = "tiny|scriptsize|small|normalsize|large|Large|LARGE|huge|Huge|displaystyle|textstyle|scriptstyle"
_EMPHASIS: Rewrites = [
    (re.compile(r"(?<![\w)\]}*])\*\*([^*]+)\*\*(?![\w(\[{*])"), r"\1"),
    (re.compile(r"(?<=[\w)}])\*\*(?=[\w(\\{-])"), "^"),  # a power, as Python writes it
    (re.compile(r"\\(?:text)?color\s*\{[^{}]*\}"), ""),
    (re.compile(r"\{\s*\\(?:bf|rm|it|sf|tt|em|bfseries|itshape)(?![A-Za-z])\s*([A-Za-z][^{}]*)\}"), r"\\text{\1}"),
    (re.compile(r"\\(?:bf|rm|it|sf|tt|em|bfseries|itshape|" + _SIZES + r")(?![A-Za-z])\s*"), ""),
    (re.compile(r"\\(?:underline|boldsymbol|bm|boxed|fbox|ensuremath)\s*(?=\{)"), ""),
    (re.compile(r"\\(?:math(?:bf|rm|it|sf|tt)|text(?:bf|it|rm)|emph)\s*\{([^{}A-Za-z]*)\}"), r"\1"),
]
_REWRITES: Rewrites = [
    (re.compile(r"\\(?:[bB]igg?[lr]?|left|right)(?![A-Za-z])\.?"), ""),
    # The numbers e and i, and number sets. Any other single upright letter may be a unit.
    (re.compile(r"\\(?:math(?:rm|bf|it|sf)|operatorname)\s*(?:\{\s*([ei])\s*\}|([ei])(?![A-Za-z]))"), r" \1\2"),
    (re.compile(r"(?<=[\w}\-+])\\text\s*\{\s*([ei])\s*\}"), r" \1"),
    (
        re.compile(r"\\(?:mathbb|Bbb|mathds)\s*\{?\s*([A-Z])(?![A-Za-z])\s*\}?|\\([NZQRC])(?![A-Za-z])"),
        r"\\mathbb{\1\2}",
    ),
    (re.compile(r"\\varnothing(?![A-Za-z])|\\text\s*\{\s*(?:the )?empty set\s*\}"), r"\\emptyset "),
    (re.compile(r"\\(?:mbox|text(?:bf|it|rm|sf|tt|normal)?|emph|math(?:rm|bf|it|sf)|operatorname)\s*\{"), r"\\text{"),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\(le|ge)(?:q|qslant)(?![A-Za-z])"), r"\\\1"),
    (re.compile(r"\\lbrace(?![A-Za-z])"), r"\\{"),
    (re.compile(r"\\rbrace(?![A-Za-z])"), r"\\}"),
    # The kind of a matrix's brackets does not matter; the bars of a determinant (vmatrix) do.
    (re.compile(r"\\(begin|end)\{[bB]?matrix\}"), r"\\\1{pmatrix}"),
    (re.compile(r"\\degree(?![A-Za-z])|\^\s*\{\s*\\circ\s*\}"), r"^\\circ"),
    (re.compile(r"(?<=\d)(?:\{,\}|,\\!)\s*(?=\d{3})"), ""),  # thousands separators, not list commas
    (re.compile(r"\{,\}|,\\!"), ","),
    (re.compile(r"\\[()\[\]!,;: ]|\\q?quad(?![A-Za-z])|\\phantom(?:\{[^{}]*\}|\s*[^{])|~|(?<!\\)\$"), " "),
    (re.compile(r"\\text\{\s*,?\s*(?:and|or)\s*\}|(?<=[\s,])(?:and|or)\s|(?<=[\d})])[和与或及]\s*(?=[\d\\(-])"), ", "),
    (re.compile(r",(?:\s*,)+"), ","),
    (re.compile(r"\\text\{\s*\}"), ""),
]
_PUNCTUATION = ".,;:"
_APPROXIMATELY = re.compile(r"^\s*\\approx(?![A-Za-z])")
_BLANKS = re.compile(TEXT + r"|\\[A-Za-z]+\s+(?=[A-Za-z])|(?<=\d)\s+(?=\d)|\s+")
_LIST_BRACKETS = re.compile(r"[(\[]|\\\{")
_LISTED = re.compile(r"(?<=\d),\s+(?=\d{3}(?!\d))")
_THOUSANDS = re.compile(r"(?<![\d.,;])\d{1,3}(?:,\d{3})+(?![\d,])")
_SPACED_THOUSANDS = re.compile(r"(?<![\d.,/ ])\d{1,3}(?: \d{3})+(?![\d/ ])")
_SPELLINGS: Rewrites = [
    (re.compile(r"\\frac ?(\d|\\[A-Za-z]+) ?(\{|\d)"), lambda match: _braced_fraction(match[1], match[2])),
    (re.compile(r"(\\frac\{[^{}]*\})(\d)"), r"\1{\2}"),
    (re.compile(r"\\sqrt ?(\d)"), r"\\sqrt{\1}"),
    (re.compile(r"_\{\((\d+)\)\}"), r"_{\1}"),  # a base in parentheses
    # The parser drops the degrees of an angle.
    (re.compile(r"(\\(?:sin|cos|tan|cot|sec|csc)(?:\^\w)? ?[({]?-?)(\d+(?:\.\d+)?)\^\\circ"), r"\1\\frac{\2\\pi}{180}"),
    (re.compile(r"([\^_])\{(\w)\}(?!\d)"), r"\1\2"),
    (re.compile(r"(?<![\d.])\.(?=\d)"), "0."),
    (re.compile(r"^(-?)(\d+)/(\d+)$"), r"\1\\frac{\2}{\3}"),
    (re.compile(r"^\\\{\\\}$"), r"\\emptyset"),
    # A set {x | 1 < x < 2} becomes its condition.
    (re.compile(r"^\\\{([a-z])(?:\||\\mid ?|:)(?=[^<>]*(?:[<>]|\\[lg]e(?![a-z])))(.*\1.*)\\\}$"), r"\2"),
]
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)


def _braced_fraction(top: str, bottom: str) -> str:
    return rf"\frac{{{top}}}" + (bottom if bottom == "{" else f"{{{bottom}}}")


def normalise_answer(text: str, thousands: bool = True) -> str:
    r"""Normalise an answer to one spelling, without layout.

    Removed are math delimiters, emphasis, `\left` and `\right`, blanks, a trailing full stop, and thousands separators
    outside brackets. Unified are the variants of \frac, of \text and of matrices; "and", "or" and commas; Unicode and
    LaTeX. A comma before a blank and three digits belongs to a list and becomes a semicolon. Units and the case of
    letters are kept.

    Args:
        text: the answer.
        thousands: whether "81,256" is one number; otherwise it is a list of two.
    """
    text = to_latex(text).replace(r"\\", _ROW_END)
    for pattern, replacement in (*_EMPHASIS, *_REWRITES):
        text = pattern.sub(replacement, text)
    text = _unwrapped(text.replace(_ROW_END, r"\\"))
    text = _APPROXIMATELY.sub("", text)
    in_brackets = _LIST_BRACKETS.search(text)
    if not in_brackets:
        text = _LISTED.sub(";", text)
    text = _BLANKS.sub(_squeeze, text)
    text = _SPACED_THOUSANDS.sub(lambda match: match.group().replace(" ", ""), text)
    if not in_brackets:
        text = _THOUSANDS.sub(lambda match: match.group().replace(",", "" if thousands else ";"), text)
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    return text


def _squeeze(match: re.Match[str]) -> str:
    """Remove blanks, except for one inside text, one between a command and a letter, and one between digits."""
    matched = match.group()
    if matched.startswith(r"\text{"):
        return r"\text{" + " ".join(unwrap_text(matched).split()) + "}"
    if matched.startswith("\\"):
        return matched.rstrip() + " "
    before, after = match.string[max(0, match.start() - 1) : match.start()], match.string[match.end() : match.end() + 1]
    return " " if before.isdigit() and after.isdigit() else ""


def _unwrapped(text: str) -> str:
    """Strip outer braces (which removing emphasis leaves), blanks and punctuation: `{73.}` and `{{73}}` become `73`."""
    closing: dict[int, int] = {}
    opened: list[int] = []
    for brace in _BRACE.finditer(text):
        if brace.group() == "{":
            opened.append(brace.start())
        elif brace.group() == "}" and opened:
            closing[opened.pop()] = brace.start()
    start, end = 0, len(text)
    while True:
        while start < end and text[start].isspace():
            start += 1
        while start < end and (text[end - 1].isspace() or text[end - 1] in _PUNCTUATION):
            end -= 1
        if closing.get(start) != end - 1:
            return text[start:end]
        start, end = start + 1, end - 1
