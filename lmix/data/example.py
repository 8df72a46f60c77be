"""A problem with its prompt as the model reads it."""

from dataclasses import dataclass

from lmix.tasks.task import Problem


@dataclass(frozen=True)
class Example:
    """What a step works on."""

    problem: Problem
    prompt_ids: list[int]
