"""The answer that a completion states in any form, for a rate beside that of right answers in the template.

Much of what training wins is the template; this rate says how much of it the model could say before. It is a best guess
by rules that look at the text, and at the gold answer only for what kind of answer to look for: of one completion at
most one answer is judged, so a list of guesses earns nothing.
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

    In this order: the last filled box, answer tag or `####`; what follows the last "answer is", "answer:" or the like;
    the last number, letter, yes or no (true or false), or line, as the gold answer is a number, a letter from A to J,
    one of these words, or something else.

    Returns:
        The answer; None where there is none, as in an empty completion.
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
    """What to look for: numbers, letters, yes and no, or None for lines."""
    gold = gold.strip()
    if _NUMBER.fullmatch(gold):
        return _NUMBER
    if _YES_NO.fullmatch(gold):
        return _YES_NO
    return _LETTER if re.fullmatch(r"[A-J]", gold) else None
