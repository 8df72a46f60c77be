r"""Answer templates: where a completion states its answer, and how a demonstration writes it.

A completion is *format-correct* if the template is present, filled and closed, after the thinking part if there is one.
Text inside <think>...</think> is ignored. If the template occurs several times, the last filled one counts.
`think_answer` is R1-Zero's format, for prompts that end in <think>: exactly `</think> <answer>`, then the answer, then
`</answer>`. `think_answer_lenient` allows any white space between the first two tags. Every search runs in linear time
and without recursion, whatever a model writes.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from lmix.verifier.choices import marked_choice

# A box command with its brace, a box command with a number or letter without braces, any other escaped character (so
# that \{ and \\ are skipped), or a plain brace.
_BRACE_TOKEN = re.compile(
    r"(\\(?:boxed|fbox)\s*\{)"
    r"|\\(?:boxed|fbox)(?![A-Za-z])\s*(-?\d[\d,.]*(?<![,.])|(?<=\s)[A-Za-z])"
    r"(?=\s*(?:\$|\\[)\]]|\n|\Z)|[.,;:](?:\s|\$|\\|\Z))"
    r"|\\.|[{}]",
    re.DOTALL,
)
_ANSWER_TAG = re.compile(r"</?answer>")
_LETTER_LINE = re.compile(r"(?:#+ ?)?(?:the )?(?:final |correct )?answer ?[:\uff1a] ?(.*)", re.IGNORECASE)
_LETTER = re.compile(r"(?:\(([a-j])\)|([a-j]))\.?", re.IGNORECASE)
_LETTER_LINE_CAP = 200


@dataclass(frozen=True)
class AnswerTemplate:
    """One way to state an answer."""

    name: str
    instruction: str
    """A sentence for prompts that asks for this template."""
    extract: Callable[[str], str | None]
    """From a completion to the stripped answer, or None if the template is missing, blank or not closed."""
    wrap: Callable[[str], str]
    """From an answer to the answer in the template."""
    separator: str = " "
    """Text between a worked solution and the wrapped answer."""


def answer_template(name: str) -> AnswerTemplate:
    """The template called `name`.

    Raises:
        ValueError: no template has this name.
    """
    if name not in _TEMPLATES:
        raise ValueError(f"answer template {name!r} is unknown: use one of {', '.join(_TEMPLATES)}")
    return _TEMPLATES[name]


def _extract_boxed(completion: str) -> str | None:
    r"""The content of the filled \boxed{} or \fbox{} that is closed last. For a box in a box, the inner one."""
    open_braces: list[tuple[int, int] | None] = []  # (start of the command, start of its content), None: plain brace
    last_closed: tuple[int, int, int, int] | None = None  # command start, content start, content end, end
    answer: tuple[int, int] | None = None
    for token in _BRACE_TOKEN.finditer(completion):
        if token.group(2):
            answer = token.span(2)
        elif token.group(1):
            open_braces.append((token.start(), token.end()))
        elif token.group() == "{":
            open_braces.append(None)
        elif token.group() == "}" and open_braces:
            box = open_braces.pop()
            if box is None:
                continue
            command, start = box
            end = token.start()
            if last_closed is not None and last_closed[0] >= start:
                inner_command, inner_start, inner_end, inner_close = last_closed
                if not completion[start:inner_command].strip() and not completion[inner_close:end].strip():
                    start, end = inner_start, inner_end
            last_closed = (command, start, end, token.end())
            if _has_text(completion, start, end):
                answer = (start, end)
    return None if answer is None else completion[answer[0] : answer[1]].strip()


_NON_BLANK = re.compile(r"\S")


def _has_text(text: str, start: int, end: int) -> bool:
    """Whether text[start:end] contains more than blanks. Stops at the first such character, so nesting stays linear."""
    return _NON_BLANK.search(text, start, end) is not None


def _extract_answer_tag(completion: str) -> str | None:
    """The content of the last filled <answer>...</answer> pair."""
    answer = None
    start = None
    for tag in _ANSWER_TAG.finditer(completion):
        if tag.group() == "<answer>":
            start = tag.end()
        elif start is not None:
            if _has_text(completion, start, tag.start()):
                answer = (start, tag.start())
            start = None
    return None if answer is None else completion[answer[0] : answer[1]].strip()


def _extract_hash(completion: str) -> str | None:
    """The text after the last filled `####`, to the end of its line."""
    for line in reversed(completion.split("\n")):
        _, mark, answer = line.rpartition("####")
        if mark and answer.strip():
            return answer.strip()
    return None


def _extract_letter(completion: str) -> str | None:
    """The upper-case letter A-J of the last line of the form `Answer: B` or `Answer: B. Paris`.

    Case is ignored. "the", "final" or "correct" may come before, the letter may be in parentheses, and the line may be
    bold or a heading in Markdown. The text of a choice must follow a full stop, parenthesis or colon, and must not name
    another choice.
    """
    for line in reversed(completion.split("\n")):
        if len(line) <= _LETTER_LINE_CAP:
            match = _LETTER_LINE.fullmatch(" ".join(line.replace("*", "").split()))
            if match is None:
                continue
            letter = _LETTER.fullmatch(match[1])
            choice = (letter[1] or letter[2]).upper() if letter else marked_choice(match[1])
            if choice:
                return choice
    return None


def _after_thought(extract: Callable[[str], str | None]) -> Callable[[str], str | None]:
    """Restrict a search to the text after the last </think>. There is no answer if a later <think> is not closed."""

    def extract_after(completion: str) -> str | None:
        rest = completion.rpartition("</think>")[2]
        return None if "<think>" in rest else extract(rest)

    return extract_after


def _thought_then_answer(tags: str) -> Callable[[str], str | None]:
    """Search for the last filled <answer>...</answer> after the thinking part.

    A box in it is unwrapped. If there is a box, it must be filled too.

    Args:
        tags: a pattern for the end of the thinking part and the start of the answer. The opening <think> is in the
            prompt.
    """
    pattern = re.compile(tags)

    def extract(completion: str) -> str | None:
        end = completion.rfind("</think>")
        if end < 0 or pattern.match(completion, end) is None or "<think>" in completion[end:]:
            return None
        answer = _extract_answer_tag(completion[end:])
        has_box = answer is not None and ("\\boxed" in answer or "\\fbox" in answer)
        return _extract_boxed(answer) if answer is not None and has_box else answer

    return extract


def _wrap_boxed(answer: str) -> str:
    return f"\\boxed{{{answer}}}"


def _wrap_answer_tag(answer: str) -> str:
    return f"<answer>{answer}</answer>"


def _wrap_think_answer(answer: str) -> str:
    return f"</think> <answer> {_wrap_boxed(answer)} </answer>"


def _wrap_hash(answer: str) -> str:
    return f"#### {' '.join(answer.split())}"


def _wrap_letter(answer: str) -> str:
    letter = answer.strip().upper()
    if len(letter) != 1 or letter not in "ABCDEFGHIJ":
        raise ValueError(f"answer {answer!r} does not fit the letter template: it must be one letter from A to J")
    return f"Answer: {letter}"


_TEMPLATES = {
    template.name: replace(template, extract=_after_thought(template.extract))
    for template in (
        AnswerTemplate("boxed", "Put the final answer in \\boxed{}.", _extract_boxed, _wrap_boxed),
        AnswerTemplate(
            "answer_tag", "Put the final answer in <answer></answer>.", _extract_answer_tag, _wrap_answer_tag
        ),
        AnswerTemplate(
            "hash", "End with a line that holds #### and the final answer.", _extract_hash, _wrap_hash, "\n"
        ),
        AnswerTemplate(
            "letter",
            # no example letter, since a small model copies it (Qwen2.5-Coder-0.5B answered B to 42 of 48 questions)
            'Reason first, then end with the line "Answer: X", where X is the letter of your choice.',
            _extract_letter, _wrap_letter, "\n",
        ),
    )
} | {
    name: AnswerTemplate(
        name,
        "Reason first, then write </think> <answer> and the final answer, and close with </answer>.",
        _thought_then_answer(tags), _wrap_think_answer, "\n",
    )
    for name, tags in (("think_answer", "</think> <answer>"), ("think_answer_lenient", r"</think>\s*<answer>"))
}  # fmt: skip
