"""The base class of tasks: problems, a prompt, an answer template and a verifier."""

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lmix.errors import one_line_errors
from lmix.verifier.anywhere import stated_answer
from lmix.verifier.normalise import normalise_answer
from lmix.verifier.templates import answer_template

Split = Literal["train", "validation", "test"]
TemplateName = Literal["boxed", "answer_tag", "hash", "letter", "think_answer", "think_answer_lenient"]


@dataclass(frozen=True)
class Problem:
    """One problem of a task."""

    id: int
    """Position in the data set. The random numbers of rollouts depend on it, so it must not depend on shuffling."""
    problem: str
    answer: str
    solution: str = ""
    """A worked solution without the answer template, for demonstrations; empty if the data set has none."""
    history: tuple[tuple[str, str], ...] = ()
    """(role, content) of the chat messages before the problem, which is the last message; usually empty."""


@dataclass(frozen=True)
class Judgement:
    """The verifier's judgement of a completion."""

    answer: str | None
    """The text in the answer template; None if the template is missing, empty or not closed."""
    answer_correct: bool
    """Whether the completion is format-correct and its answer is correct."""
    parsed: bool = True
    """Whether the verifier could parse the answer. An answer that it could not parse is wrong."""
    right_anywhere: bool = False
    """Whether the answer is correct, in the template or in any other recognised form (`verifier.anywhere`)."""

    @property
    def format_correct(self) -> bool:
        return self.answer is not None


def chat_ids(
    tokenizer: Any,
    messages: Sequence[dict[str, str]],
    system: str | None,
    arguments: Mapping[str, Any] | None = None,
) -> list[int]:
    """Token ids of a conversation in the tokenizer's chat template, ending where the next answer begins.

    Args:
        tokenizer: a tokenizer with a chat template.
        messages: dicts with role and content.
        system: the system message; None uses the template's own.
        arguments: other variables of the template, such as `enable_thinking`.

    Raises:
        ValueError: the template has no such variable, rejects the conversation, or gives no tokens for it.
    """
    first = [] if system is None else [{"role": "system", "content": system}]
    chat = [*first, *messages]
    arguments = dict(arguments or {})
    for name in arguments:
        if name in ("messages", "add_generation_prompt") or not re.search(
            rf"\b{re.escape(name)}\b", str(tokenizer.chat_template)
        ):
            raise ValueError(
                f"chat_template_args names {name!r}, which is not a variable of the tokenizer's chat template"
            )
    roles = ", ".join(message["role"] for message in chat)
    with one_line_errors(f"the chat template rejects messages of the roles {roles}", "; see task.system and task.chat"):
        encoded = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, **arguments)
        ids = list(encoded["input_ids"])
    if not ids:
        raise ValueError(f"the chat template gives no tokens for messages of the roles {roles}; see task.chat")
    return ids


def read_prompt(prompt: str) -> str:
    """A task's prompt; if it names a file, the file's content.

    Raises:
        ValueError: the prompt does not contain `{problem}`, or the file is not UTF-8.
    """
    text = prompt
    if "{problem}" not in prompt and os.path.isfile(prompt):
        try:
            text = Path(prompt).read_text(encoding="utf-8").removesuffix("\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"task.prompt: the file {prompt!r} is not text in UTF-8: {error.reason}") from error
    if "{problem}" not in text:
        raise ValueError(f"task.prompt must contain {{problem}}, or be a file that does, not {prompt!r}")
    return text


class Task:
    """Base class of tasks. Subclasses implement `problems`, and `verify` unless exact match is enough.

    Args:
        prompt: the prompt, or the path of a text file with it (a line end at the end of the file is ignored).
            `{problem}` and `{instruction}` are filled in. For chat messages it formats the last one; `{problem}` alone
            leaves that message unchanged.
        template: the answer template.
        instruction: the text for `{instruction}`; null uses the template's own sentence.
        chat: put the prompt into the tokenizer's chat template as a user message, if the tokenizer has one.
        system: the system message of the chat; null uses the chat template's own.
        chat_template_args: other variables of the chat template, such as {enable_thinking: false}.

    Raises:
        ValueError: the prompt does not contain `{problem}` and is not a file that does, or variables are given for a
            chat template that is not used.
    """

    name = "task"
    splits: frozenset[Split] = frozenset({"train", "test"})
    """The splits that the data have; others are taken out of `train`."""
    unparsed: Collection[tuple[str | None, str]] = ()
    """(answer, gold) pairs of the latest `verify` that could not be parsed, or not within the time limit."""

    def __init__(
        self,
        prompt: str = "{problem}\n\n{instruction}",
        template: TemplateName = "boxed",
        instruction: str | None = None,
        chat: bool = True,
        system: str | None = None,
        chat_template_args: dict[str, Any] | None = None,
    ) -> None:
        prompt = read_prompt(prompt)
        if chat_template_args and not chat:
            raise ValueError(
                f"task.chat_template_args {chat_template_args} need the chat template: set task.chat to true"
            )
        self.prompt, self.chat, self.system = prompt, chat, system
        self.chat_template_args = chat_template_args
        self.template = answer_template(template)
        self.instruction = self.template.instruction if instruction is None else instruction

    def problems(self, split: Split) -> Sequence[Problem]:
        """All problems of a split. Raises ValueError, in one line, if the data are missing or malformed."""
        raise ValueError(f"{type(self).__name__} has no problems of its own: name a task such as lmix.tasks.MathTask")

    def verify(self, answers: Sequence[str | None], golds: Sequence[str]) -> list[bool]:
        """Whether each answer is correct; None stands for a completion that is not format-correct."""
        pairs = zip(answers, golds, strict=True)
        return [a is not None and normalise_answer(a) == normalise_answer(gold) for a, gold in pairs]

    @property
    def failures(self) -> int:
        """Number of answers so far on which the verifier timed out or crashed. They count as wrong."""
        return 0

    def judge(self, completions: Sequence[str], golds: Sequence[str]) -> list[Judgement]:
        """Judge completions, which are decoded without their end-of-sequence token."""
        answers = [self.template.extract(completion) for completion in completions]
        verdicts = self.verify(answers, golds)
        parsed = [pair not in self.unparsed for pair in zip(answers, golds, strict=True)]
        stated = [stated_answer(completion, gold) for completion, gold in zip(completions, golds, strict=True)]
        # skip completions without an answer, and answers that were just judged
        others = [i for i, v in enumerate(verdicts) if not v and stated[i] not in (None, answers[i])]
        anywhere = list(verdicts)
        if others:
            for i, right in zip(
                others, self.verify([stated[i] for i in others], [golds[i] for i in others]), strict=True
            ):
                anywhere[i] = right
        return [Judgement(*fields) for fields in zip(answers, verdicts, parsed, anywhere, strict=True)]

    def demonstration(self, problem: Problem) -> str:
        """A worked solution that ends with the answer in the template, for supervised fine-tuning.

        Raises:
            ValueError: the problem has no solution.
        """
        if not problem.solution:
            raise ValueError(
                f"problem {problem.id} of task {self.name} has no solution: SFT needs task.solution_column"
            )
        if self.template.extract(problem.solution) is not None:
            return problem.solution
        return f"{problem.solution}{self.template.separator}{self.template.wrap(problem.answer)}"

    def prompt_text(self, problem: Problem) -> str:
        """The prompt without a chat template."""
        filled = self.prompt.replace("{instruction}", self.instruction)
        return filled.replace("{problem}", problem.problem)

    def prompt_ids(self, problem: Problem, tokenizer: Any) -> list[int]:
        """Token ids of the prompt, in the chat template if it is used.

        Raises:
            ValueError: the problem is a conversation, or chat template variables are given, and the tokenizer has no
                chat template or `chat` is false.
        """
        text = self.prompt_text(problem)
        if not (self.chat and tokenizer.chat_template):
            if problem.history:
                raise ValueError(
                    f"problem {problem.id} of task {self.name} is a conversation of {len(problem.history) + 1} "
                    "messages, which needs task.chat and a tokenizer with a chat template"
                )
            if self.chat_template_args:
                raise ValueError(
                    f"task.chat_template_args {self.chat_template_args}: the tokenizer has no chat template"
                )
            return tokenizer(text)["input_ids"]
        messages = [{"role": role, "content": content} for role, content in (*problem.history, ("user", text))]
        return chat_ids(tokenizer, messages, self.system, self.chat_template_args)

    def close(self) -> None:
        """Release resources of the verifier, such as worker processes."""
