"""Answers as text: one spelling for each answer, and its unit apart from it. Pure functions, linear in their input."""

import re
from collections.abc import Callable

TEXT = r"\\text\{[^{}]*\}"
"""A pattern for the one command that `normalise_answer` leaves for words."""

_ROW_END = "\0"  # stands for a double backslash during the rewrites: its second half is no command's first

_CHARACTERS = str.maketrans(
    {
        "\N{MINUS SIGN}": "-", "\N{EN DASH}": "-", "\N{MULTIPLICATION SIGN}": r"\times ", "÷": "/", "·": r"\cdot ",
        "π": r"\pi ", "θ": r"\theta ", "∞": r"\infty ", "√": r"\sqrt ", "\N{UNION}": r"\cup ", "≤": r"\le ",
        "≥": r"\ge ", "±": r"\pm ", "°": r"^\circ ", "∅": r"\emptyset ", "\N{FULLWIDTH COMMA}": ",",
        "\N{NO-BREAK SPACE}": " ", "\N{FULLWIDTH LEFT PARENTHESIS}": "(", "\N{FULLWIDTH RIGHT PARENTHESIS}": ")",
    }
)  # fmt: skip

Rewrites = list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]]
_REWRITES: Rewrites = [
    (re.compile(r"\\(?:[bB]igg?[lr]?|left|right)(?![A-Za-z])\.?|\\displaystyle(?![A-Za-z])"), ""),
    (re.compile(r"\\(?:mbox|text(?:bf|it|rm|normal)?|math(?:rm|bf|it)|operatorname)\s*\{"), r"\\text{"),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\(le|ge)(?:q|qslant)(?![A-Za-z])"), r"\\\1"),
    (re.compile(r"\\lbrace(?![A-Za-z])"), r"\\{"),
    (re.compile(r"\\rbrace(?![A-Za-z])"), r"\\}"),
    # The brackets of a matrix say nothing; the bars of a determinant (vmatrix) do.
    (re.compile(r"\\(begin|end)\{[bB]?matrix\}"), r"\\\1{pmatrix}"),
    (re.compile(r"\\degree(?![A-Za-z])|\^\s*\{\s*\\circ\s*\}"), r"^\\circ"),
    (re.compile(r"\{,\}|,\\!"), ","),
    (re.compile(r"\\[()\[\]!,;: ]|\\q?quad(?![A-Za-z])|\\phantom(?:\{[^{}]*\}|\s*[^{])|~|(?<!\\)\$"), " "),
    (re.compile(r"\\text\{\s*,?\s*(?:and|or)\s*\}|(?<=[\s,])(?:and|or)\s"), ", "),
    (re.compile(r",(?:\s*,)+"), ","),
    (re.compile(r"^\s*\\approx(?![A-Za-z])"), ""),
]
_BLANKS = re.compile(TEXT + r"|\\[A-Za-z]+\s+(?=[A-Za-z])|(?<=\d)\s+(?=\d)|\s+")
_LIST_BRACKETS = re.compile(r"[(\[]|\\\{")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_SPELLINGS: Rewrites = [
    (re.compile(r"\\frac ?(\d|\\[A-Za-z]+) ?(\{|\d)"), lambda match: _braced_fraction(match[1], match[2])),
    (re.compile(r"(\\frac\{[^{}]*\})(\d)"), r"\1{\2}"),
    (re.compile(r"\\sqrt ?(\d)"), r"\\sqrt{\1}"),
    (re.compile(r"([\^_])\{(\w)\}(?!\d)"), r"\1\2"),
    (re.compile(r"(?<![\d.])\.(?=\d)"), "0."),
    (re.compile(r"^(-?)(\d+)/(\d+)$"), r"\1\\frac{\2}{\3}"),
    # The set of the x with 1 < x < 2 is its condition.
    (re.compile(r"^\\\{([a-z])(?:\||\\mid ?|:)(?=[^<>]*(?:[<>]|\\[lg]e(?![a-z])))(.*\1.*)\\\}$"), r"\2"),
]


def _braced_fraction(top: str, bottom: str) -> str:
    return rf"\frac{{{top}}}" + (bottom if bottom == "{" else f"{{{bottom}}}")


def normalise_answer(text: str) -> str:
    r"""One spelling of an answer, without its layout.

    Goes: math delimiters, `\left` and `\right`, blanks, a trailing full stop, thousands separators outside brackets.
    Becomes one: the families of \frac, \text and matrix, "and" or "or" and commas. Units and letters' case stay.
    """
    text = text.translate(_CHARACTERS).replace(r"\\", _ROW_END)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = _BLANKS.sub(_squeeze, text.replace(_ROW_END, r"\\").strip().rstrip(".,;: "))
    if not _LIST_BRACKETS.search(text):
        text = _THOUSANDS.sub(lambda match: match.group().replace(",", ""), text)
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    return text


def _squeeze(match: re.Match[str]) -> str:
    """Blanks go, but for one inside text, one after a command that a letter follows, and one between digits."""
    found = match.group()
    if found.startswith(r"\text{"):
        return r"\text{" + " ".join(found.removeprefix(r"\text{").removesuffix("}").split()) + "}"
    if found.startswith("\\"):
        return found.rstrip() + " "
    before, after = match.string[max(0, match.start() - 1) : match.start()], match.string[match.end() : match.end() + 1]
    return " " if before.isdigit() and after.isdigit() else ""


def unwrap_text(text: str) -> str:
    r"""A normalised answer with the content of each \text{...} in place of it."""
    return re.sub(TEXT, lambda match: match.group()[6:-1], text)


_UNIT_NAMES = {
    "cm": "centimeter centimetre", "mm": "millimeter millimetre", "km": "kilometer kilometre", "m": "meter metre",
    "in": "inch inche", "ft": "foot feet", "yd": "yard", "mi": "mile", "s": "sec second", "min": "minute",
    "h": "hr hour", "day": "", "week": "", "month": "", "year": "yr", "g": "gm gram", "kg": "kilogram",
    "lb": "pound", "oz": "ounce", "l": "liter litre", "ml": "milliliter", "mph": "milesperhour", "am": "", "pm": "",
    "degree": "deg", "percent": "percentage", "dollar": "usd", "cent": "", "radian": "rad",
}  # fmt: skip
_UNITS = {alias: unit for unit, names in _UNIT_NAMES.items() for alias in (unit, *names.split())}
_UNIT = re.compile(
    r"(?P<percent>\\?%)|(?P<degree>\^\\circ)|(?:(?P<text>" + TEXT + r")|(?<=[\d})])(?P<word>[A-Za-z]{2,}))"
    r"(?P<power>\^[23])?"
)


def split_unit(text: str) -> tuple[str, str | None]:
    r"""Take the unit off a normalised answer.

    Returns:
        The rest, and the unit: `cm`, `ft^2`, `percent`, `degree`, `dollar` (from \$). The unit is None when there is
        none, or when it is outside the table of measures ("3 apples", "18 units"): such a unit counts for nothing.
    """
    money = r"\$" in text
    body, unit = text.replace(r"\$", ""), None
    match = next((match for match in _UNIT.finditer(body) if match.end() == len(body)), None)
    if match is not None and re.search(r"[\w})]", re.sub(TEXT, "", body[: match.start()])):
        named = "percent" if match["percent"] else "degree" if match["degree"] else _unit_in_words(match)
        if named is not None or match["text"]:
            body, unit = body[: match.start()], named
    return body, ("dollar" if money else unit)


def _unit_in_words(match: re.Match[str]) -> str | None:
    """The name in the table, None for a unit that is not there."""
    name = re.sub(r"[\s.,]", "", unwrap_text(match["text"] or match["word"]).lower())
    power = match["power"] or ""
    for prefix, prefix_power in (("square", "^2"), ("sq", "^2"), ("cubic", "^3")):
        if name.startswith(prefix):
            name, power = name.removeprefix(prefix), prefix_power
    unit = _UNITS.get(name) or _UNITS.get(name.removesuffix("s"))
    return None if unit is None else unit + power
