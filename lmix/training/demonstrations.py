"""Worked solutions as completions: the training data of SFT, which some objectives also add to a group."""

import sys

import torch
from transformers import PreTrainedTokenizerBase

from lmix.data.module import RLDataModule
from lmix.model.end_tokens import demonstration_end
from lmix.model.sources import count_places, load_config
from lmix.rollout.types import Prompt, Rollout
from lmix.tasks.task import Task


def demonstration(prompt: Prompt, task: Task, tokenizer: PreTrainedTokenizerBase) -> Rollout:
    """Return a problem's demonstration as a rollout that ends with the end-of-turn token.

    Its log-probabilities are 0, as if it had been sampled with probability 1.

    Raises:
        ValueError: the problem has no solution.
    """
    text = task.demonstration(prompt.problem)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = [*ids, demonstration_end(tokenizer, task.chat)]  # pyright: ignore[reportGeneralTypeIssues]
    return Rollout(prompt, -1, ids, torch.zeros(len(ids)), ended=True, text=text, is_demonstration=True)


def limit_demonstrations(data: RLDataModule, backbone: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Apply `data.long_prompts` to training problems whose prompt and demonstration exceed the backbone's context.

    Raises:
        ValueError: as in `RLDataModule.limit_training`, or a problem has no solution.
    """
    context = count_places(load_config(backbone)) or sys.maxsize
    data.limit_training(lambda prompt: len(demonstration(prompt, data.task, tokenizer)), context)
