"""The answer that a completion states in any form, for a rate besides that of correct answers in the template.

Much of what training gains is the answer template. This rate shows how much the model could already answer without it.
The answer is found by heuristic rules on the text. They use the gold answer only to know what kind of answer to look
for. At most one answer per completion is judged, so listing guesses does not help.
"""

import re

from lmix.verifier.templates import answer_template

_TEMPLATES = ("boxed", "answer_tag", "hash")
_NUMBER = re.compile(r"(?<![\w.])[-\u2212]?\d+(?:,\d{3})*(?:\.\d+)?(?:/\d+)?")
_LETTER = re.compile(r"\(([A-J])\)|(?<![A-Za-z0-9'])([A-J])(?=[.):*]|[ \t]*$)(?<! I)", re.MULTILINE)
_YES_NO = re.compile(r"\b(yes|no|true|false)\b", re.IGNORECASE)
_PHRASE = re.compile(r"(?:answer|result|solution)\**\s*(?:is|are|:|=|\uff1a)\**\s*:?[ \t]*([^\n]*\S)", re.IGNORECASE)
_MARKS = " \t*_`$\"'\u201c\u201d"


def stated_answer(completion: str, gold: str) -> str | None:
    """The last answer that a completion states, wherever it stands.

    The rules are, in this order: the last filled box, answer tag or `####`; the text after the last "answer is",
    "answer:" or similar; the last number, letter, yes/no/true/false, or line. The kind of the last rule depends on
    whether the gold answer is a number, a letter from A to J, one of these words, or anything else.

    Returns:
        The answer; None if there is none, as in an empty completion.
    """
    text = completion.rpartition("</think>")[2]
    for name in _TEMPLATES:
        if (answer := answer_template(name).extract(text)) is not None:
            return answer
    pattern = _kind(gold)
    phrases = [match[1] for match in _PHRASE.finditer(text)]
    if pattern is None:
        lines = [line for line in text.splitlines() if line.strip(_MARKS)]
        said = phrases[-1:] or lines[-1:]
        return said[0].strip(_MARKS).removesuffix(".").strip(_MARKS) or None if said else None
    for part in [*phrases[-1:], text]:
        if found := [match.group(match.lastindex or 0) for match in pattern.finditer(part)]:
            return found[-1].replace("\u2212", "-")
    return None


def _kind(gold: str) -> re.Pattern[str] | None:
    """The pattern to search for: numbers, letters, or yes and no; None for whole lines."""
    gold = gold.strip()
    if _NUMBER.fullmatch(gold):
        return _NUMBER
    if _YES_NO.fullmatch(gold):
        return _YES_NO
    return _LETTER if re.fullmatch(r"[A-J]", gold) else None
