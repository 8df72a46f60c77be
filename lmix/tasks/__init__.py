"""Tasks: problems with their prompts, answer templates and verifiers. Imports neither torch nor sympy."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lmix.tasks.arithmetic import ArithmeticTask
from lmix.tasks.task import Judgement, Problem, Task
from lmix.verifier.normalise import normalise_answer
from lmix.verifier.pool import Verdict, Verifier, verify_answer
from lmix.verifier.templates import AnswerTemplate, answer_template

if TYPE_CHECKING:
    from lmix.tasks.cn_k12 import CnK12Task
    from lmix.tasks.dataset import DatasetTask
    from lmix.tasks.math import MathTask
    from lmix.tasks.mmlu import MMLUTask
    from lmix.tasks.reasoning_gym import ReasoningGymTask

__all__ = [
    "AnswerTemplate",
    "ArithmeticTask",
    "CnK12Task",
    "DatasetTask",
    "Judgement",
    "MMLUTask",
    "MathTask",
    "Problem",
    "ReasoningGymTask",
    "Task",
    "Verdict",
    "Verifier",
    "answer_template",
    "normalise_answer",
    "verify_answer",
]

# imported lazily, because they import the `datasets` library
_HOMES = {
    "CnK12Task": "lmix.tasks.cn_k12",
    "DatasetTask": "lmix.tasks.dataset",
    "MMLUTask": "lmix.tasks.mmlu",
    "MathTask": "lmix.tasks.math",
    "ReasoningGymTask": "lmix.tasks.reasoning_gym",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'lmix.tasks' has no attribute {name!r}")
