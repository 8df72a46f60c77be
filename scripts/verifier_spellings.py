# ruff: noqa: RUF001 (full-width spellings)
r"""Rules that respell gold answers, and alterations that make them wrong, for `verifier_campaign.py`.

A rule returns None for a gold answer that it does not apply to.
"""

import random
import re
from collections.abc import Callable
from fractions import Fraction

Rule = Callable[[str], str | None]
_WIDE = {ord(character): ord(character) + 0xFEE0 for character in "0123456789()+=,<>"} | {ord(","): "\uff0c"}
_RAISED = str.maketrans("0123456789n", "⁰¹²³⁴⁵⁶⁷⁸⁹ⁿ")
_VULGAR = {"1/2": "½", "1/3": "⅓", "2/3": "⅔", "1/4": "¼", "3/4": "¾", "1/5": "⅕", "2/5": "⅖", "1/6": "⅙", "5/6": "⅚",
           "1/8": "⅛", "3/8": "⅜", "5/8": "⅝", "7/8": "⅞", "1/9": "⅑", "1/10": "⅒"}  # fmt: skip
_CHINESE = {"cm": "厘米", "m": "米", "km": "公里", "kg": "千克", "hours": "小时", "minutes": "分钟", "dollars": "美元",
            "feet": None}  # fmt: skip
_CONSTANT = re.compile(r"(?<![A-Za-z\\])([ei])(?![A-Za-z])")
_PLAIN = re.compile(r"-?\d+(?:\.\d+)?")
_LONG = re.compile(r"(?<![\d.,_^{!])(\d{4,})(?![\d.,_!])")
_LETTERS = re.compile(r"\\text\{\(?([A-Z](?:, ?[A-Z])*)\)?\}|\(?([A-J](?:, ?[A-J])*)\)?|\\text\{\(([A-J])\)\}")


def _grouped(separator: str) -> Rule:
    def rule(gold: str) -> str | None:
        if re.search(r"[\[(]|\\\{|\\(?:begin|frac|text|mbox)|_", gold) or not _LONG.search(gold):
            return None
        return _LONG.sub(lambda number: f"{int(number[1]):,}".replace(",", separator), gold)

    return rule


def _wrapped(before: str, after: str = "}", only: str = "") -> Rule:
    def rule(gold: str) -> str | None:
        return before + gold + after if re.fullmatch(only or r"[^$]*", gold, re.DOTALL) else None

    return rule


def _constants(gold: str) -> str | None:
    text = re.sub(r"\\text\{[^{}]*\}", "", gold)
    return _CONSTANT.sub(r"\\mathrm{\1}", gold) if _CONSTANT.search(text) and r"\text" not in gold else None


def _full_width(gold: str) -> str | None:
    if re.search(r"\\[a-z]*\{?[a-z]*\d|\\\(|\\[a-z]*\(|,\\!|\{,\}|\\begin|\\[ ,;]", gold) or not re.search(r"\d", gold):
        return None
    # a full-width comma separates lists, never thousands
    return gold.translate(_WIDE) if not re.search(r"\d,\d{3}", gold) else None


def _raised(gold: str) -> str | None:
    text = re.sub(r"\^(?:\{(\d+)\}|(\d|n))", lambda power: (power[1] or power[2]).translate(_RAISED), gold)
    return text if text != gold else None


def _vulgar(gold: str) -> str | None:
    def sign(fraction: re.Match[str]) -> str:
        return _VULGAR.get(f"{fraction[1]}/{fraction[2]}", fraction.group())

    text = re.sub(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}", sign, gold)
    return text if text != gold else None


def _chinese_unit(gold: str) -> str | None:
    if re.fullmatch(r"\d+(?:\.\d+)?", gold):
        return gold + "元"
    match = re.fullmatch(r"(.*[\d})])\s*\\(?:text|mbox)\{ *([a-z]+)\}", gold)
    unit = _CHINESE.get(match[2]) if match else None
    return match[1] + unit if match and unit else None


def _scientific(form: str) -> Rule:
    def rule(gold: str) -> str | None:
        if not _PLAIN.fullmatch(gold) or Fraction(gold) == 0:
            return None
        digits = gold.lstrip("-").replace(".", "").lstrip("0")
        exponent = len(gold.lstrip("-").split(".")[0].lstrip("0")) - 1
        if exponent < 0:
            fraction = gold.split(".")[1]
            exponent = -(len(fraction) - len(fraction.lstrip("0"))) - 1
        mantissa = digits[0] + ("." + digits[1:] if digits[1:] else "")
        return ("-" if gold[0] == "-" else "") + form.format(mantissa=mantissa, exponent=exponent)

    return rule


def _letters(joint: str, before: str = "", after: str = "") -> Rule:
    def rule(gold: str) -> str | None:
        match = _LETTERS.fullmatch(gold)
        letters = re.findall("[A-J]", gold.replace("text", "")) if match else []
        if not letters or (len(letters) == 1 and joint):
            return None
        if not joint and letters != sorted(letters):
            return None  # AC is A and C, but in CA the order may matter
        return before + joint.join(letters) + after

    return rule


def _chain(gold: str) -> str | None:
    """A decimal or an integer as a chain of equal values: 7 - 1 + 1 = 7."""
    if not _PLAIN.fullmatch(gold):
        return None
    return f"{gold} - 1 + 1 = {gold}"


def _two_spellings(gold: str) -> str | None:
    """The last of the values in a gold answer that gives two."""
    return gold.split("=")[-1] if re.fullmatch(r"[\d.\\%= ]+=[\d.\\%= ]+", gold) else None


NUMBER = r"-?[\d.]+"
RULES: dict[str, Rule] = {
    r"10\,000": _grouped(r"\,"), "10 000": _grouped(" "), "10{,}000": _grouped("{,}"),
    r"\mathrm{e}, \mathrm{i}": _constants,
    "**g**": _wrapped("**", "**"), r"\underline": _wrapped(r"\underline{"), r"\color": _wrapped(r"\color{red}{"),
    r"\textcolor": _wrapped(r"\textcolor{blue}{"), r"\boldsymbol": _wrapped(r"\boldsymbol{"),
    r"{\bf g}": _wrapped(r"{\bf ", only=NUMBER), r"\mathbf": _wrapped(r"\mathbf{", only=NUMBER),
    "full width": _full_width, "。": _wrapped("", "。"), "元, 厘米": _chinese_unit, "x²": _raised, "½": _vulgar,
    r"\text{Answer: }": _wrapped(r"\text{Answer: }", ""), "The answer is": _wrapped("The answer is ", "."),
    "**Answer:**": _wrapped("**Answer:** ", ""), "答案：": _wrapped("答案：", ""),
    "1.2e3": _scientific("{mantissa}e{exponent}"), r"1.2\times10^3": _scientific(r"{mantissa}\times 10^{{{exponent}}}"),
    "AC": _letters(""), "A, C": _letters(", "), "A and C": _letters(" and "), "A、C": _letters("、"),
    r"\text{A and C}": _letters(" and ", r"\text{", "}"), "Option B": _letters("", "Option "),
    "a chain": _chain, "0.56 = 56%": _two_spellings,
}  # fmt: skip


def altered(gold: str, chance: random.Random) -> str | None:
    """A wrong answer that looks like the gold answer; None if it contains nothing to change."""
    places = list(re.finditer(r"\d+", gold))
    if places:
        place = chance.choice(places)
        other = str(int(place.group()) + chance.choice([1, 2, 10]))
        return gold[: place.start()] + other + gold[place.end() :]
    if choice := _LETTERS.fullmatch(gold):
        place = next(re.finditer(r"(?<![a-z{])\(?[A-I](?![a-z])|(?<=\{)\(?[A-I]", gold), None)
        return None if place is None or choice is None else gold[: place.end() - 1] + "J" + gold[place.end() :]
    return None if r"\text" in gold or (gold.isalpha() and len(gold) > 1) else f"{gold}+1"
