# ruff: noqa: RUF001 (characters to replace)
r"""Unicode characters in an answer, written as LaTeX: 8厘米 in full-width digits, x², ½, ≤, α. Linear in its input."""

import re
import unicodedata

_SIGNS = {
    "\N{MINUS SIGN}": "-", "\N{EN DASH}": "-", "\N{MULTIPLICATION SIGN}": r"\times ", "÷": "/", "·": r"\cdot ",
    "\N{DOT OPERATOR}": r"\cdot ", "\N{INFINITY}": r"\infty ", "√": r"\sqrt ", "\N{UNION}": r"\cup ",
    "\N{INTERSECTION}": r"\cap ", "\N{ELEMENT OF}": r"\in ", "≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ",
    "≠": r"\ne ", "≈": r"\approx ", "±": r"\pm ", "°": r"^\circ ", "º": r"^\circ ", "˚": r"^\circ ",
    "∅": r"\emptyset ", "\N{RATIO}": ":", "\N{PRIME}": "'", "。": ".", "、": ", ", "\N{FULLWIDTH COMMA}": ", ",
    "\N{NO-BREAK SPACE}": " ", "\N{NARROW NO-BREAK SPACE}": " ", "\N{THIN SPACE}": " ", "\N{IDEOGRAPHIC SPACE}": " ",
    "ℝ": r"\mathbb{R}", "ℕ": r"\mathbb{N}", "ℤ": r"\mathbb{Z}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}",
    "ⅇ": "e", "ℯ": "e", "ⅈ": "i",
}  # fmt: skip
_INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff"
_GREEK = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau phi chi psi omega"


def _table() -> dict[int, str]:
    r"""Full-width forms and mathematical letters become plain, fractions become \frac; circled numbers stay."""
    table = {ord(sign): text for sign, text in _SIGNS.items()} | dict.fromkeys(map(ord, _INVISIBLE), "")
    for code in (*range(0xFF01, 0xFF5F), *range(0x1D400, 0x1D6A4), *range(0x1D7CE, 0x1D800)):
        table.setdefault(code, unicodedata.normalize("NFKC", chr(code)))
    for code in (*range(0xBC, 0xBF), *range(0x2150, 0x215F)):
        top, bottom = unicodedata.normalize("NFKC", chr(code)).split("\N{FRACTION SLASH}")
        table[code] = rf"\frac{{{top}}}{{{bottom}}}"
    for name in _GREEK.split():
        spelled = "LAMDA" if name == "lambda" else name.upper()
        table[ord(unicodedata.lookup(f"GREEK SMALL LETTER {spelled}"))] = rf"\{name} "
    return table


_TABLE = _table()
_SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ"
_SUBSCRIPTS = "₀₁₂₃₄₅₆₇₈₉₊₋₍₎"
_RAISED = re.compile(f"[{_SUPERSCRIPTS}]+")
_LOWERED = re.compile(f"[{_SUBSCRIPTS}]+")
_ROOT = re.compile(r"√\s*(?:(\d+(?:\.\d+)?)|\(([^()]*)\))")  # the sign covers a whole number, \sqrt only a digit


def to_latex(text: str) -> str:
    """The answer with its Unicode signs replaced by LaTeX commands or ASCII."""
    if text.isascii():
        return text
    text = _ROOT.sub(lambda root: rf"\sqrt{{{root[1] or root[2]}}}", text)
    text = _RAISED.sub(lambda run: f"^{{{_plain(run.group())}}}", text)
    text = _LOWERED.sub(lambda run: f"_{{{_plain(run.group())}}}", text)
    return text.translate(_TABLE)


def _plain(run: str) -> str:
    return unicodedata.normalize("NFKC", run).replace("\N{MINUS SIGN}", "-")
