"""Worked solutions as completions: what SFT imitates, and what some objectives add to a group."""

import sys

import torch
from transformers import PreTrainedTokenizerBase

from lmix.data.module import RLDataModule
from lmix.model.end_tokens import demonstration_end
from lmix.model.sources import count_places, load_config
from lmix.rollout.types import Prompt, Rollout
from lmix.tasks.task import Task


def demonstration(prompt: Prompt, task: Task, tokenizer: PreTrainedTokenizerBase) -> Rollout:
    """A problem's demonstration, with the token that ends the turn.

    Its log-probabilities are 0: whoever wrote it is taken to have been certain.

    Raises:
        ValueError: the problem has no solution.
    """
    text = task.demonstration(prompt.problem)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = [*ids, demonstration_end(tokenizer, task.chat)]  # pyright: ignore[reportGeneralTypeIssues]
    return Rollout(prompt, -1, ids, torch.zeros(len(ids)), ended=True, text=text, is_demonstration=True)


def limit_demonstrations(data: RLDataModule, backbone: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Drop training problems whose prompt and demonstration are longer than the backbone's context, or stop.

    Raises:
        ValueError: as in `RLDataModule.limit_training`, or a problem has no solution.
    """
    context = count_places(load_config(backbone)) or sys.maxsize
    data.limit_training(lambda prompt: len(demonstration(prompt, data.task, tokenizer)), context)
