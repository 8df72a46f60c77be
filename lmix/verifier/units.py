r"""Separation of a normalised answer into number and unit. Pure functions that run in linear time."""

import re

TEXT = r"\\text\{[^{}]*\}"
"""A pattern for \\text{...}, the only command for words that `normalise_answer` keeps."""

_UNIT_NAMES = {
    "cm": "centimeter centimetre 厘米", "mm": "millimeter millimetre 毫米", "dm": "decimeter decimetre 分米",
    "km": "kilometer kilometre 千米 公里", "m": "meter metre 米", "in": "inch inche", "ft": "foot feet", "yd": "yard",
    "mi": "mile", "s": "sec second 秒", "min": "minute 分钟", "h": "hr hour 小时", "day": "天", "week": "周",
    "month": "个月", "year": "yr 年", "g": "gm gram 克", "kg": "kilogram 千克 公斤", "t": "ton tonne 吨", "lb": "pound",
    "oz": "ounce", "l": "liter litre 升", "ml": "milliliter millilitre 毫升", "mph": "milesperhour", "am": "", "pm": "",
    "degree": "deg 度", "percent": "percentage", "dollar": "usd 美元", "cent": "", "yuan": "rmb cny 元",
    "radian": "rad 弧度",
}  # fmt: skip
_UNITS = {alias: unit for unit, names in _UNIT_NAMES.items() for alias in (unit, *names.split())}
_CHINESE_COUNTERS = frozenset("个人名本件只条张块棵辆台次组种岁支根套间户枚颗倍")
"""Ignored like other count nouns ("apples"). Other characters may be numbers (3万 is 30000) and stay in the answer."""
_PREFIXES = (("square", "^2"), ("sq", "^2"), ("平方", "^2"), ("cubic", "^3"), ("立方", "^3"))
_UNIT = re.compile(
    r"(?P<percent>\\?%)|(?P<degree>\^\\circ)|(?:(?P<text>" + TEXT + r")|(?<=[\d})])(?P<word>[A-Za-z]{2,}|[一-鿿]{1,6}))"
    r"(?P<power>\^[23])?"
)


def unwrap_text(text: str) -> str:
    r"""A normalised answer with each \text{...} replaced by its content."""
    return re.sub(TEXT, lambda match: match.group()[6:-1], text)


def split_unit(text: str) -> tuple[str, str | None]:
    r"""Split a normalised answer into the rest and its unit.

    Returns:
        The rest, and the unit: `cm`, `ft^2`, `percent`, `degree`, `dollar` (from \$). The unit is None if there is
        none, or if it is not in the table of units ("3 apples", "18 units"), in which case it is ignored.
    """
    money = r"\$" in text
    body, unit = text.replace(r"\$", ""), None
    match = next((match for match in _UNIT.finditer(body) if match.end() == len(body)), None)
    if match is not None and re.search(r"[\w})]", re.sub(TEXT, "", body[: match.start()])):
        named = "percent" if match["percent"] else "degree" if match["degree"] else _unit_in_words(match)
        if named is not None or match["text"] or match["word"] in _CHINESE_COUNTERS:
            body, unit = body[: match.start()], named
    return body, ("dollar" if money else unit)


def _unit_in_words(match: re.Match[str]) -> str | None:
    """The name of the unit in the table; None if it is not there."""
    name = re.sub(r"[\s.,]", "", unwrap_text(match["text"] or match["word"]).lower())
    power = match["power"] or ""
    for prefix, prefix_power in _PREFIXES:
        if name.startswith(prefix):
            name, power = name.removeprefix(prefix), prefix_power
    unit = _UNITS.get(name) or _UNITS.get(name.removesuffix("s"))
    return None if unit is None else unit + power
