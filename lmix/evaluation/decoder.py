"""Sampling with any sampler, decoding to text and judging. Training and all evaluation go through this module."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from lmix.model.mixture import Mixture
from lmix.rollout.limits import Limits
from lmix.rollout.sampler import Progress, Sampler
from lmix.rollout.types import Draw, Group, Prompt, Rollout, flatten
from lmix.tasks.task import Judgement, Task
from lmix.verifier.anywhere import stated_answer


@dataclass
class Decoder:
    """A sampler, with the limits, tokenizer and task that its completions are decoded and judged with."""

    sampler: Sampler
    limits: Limits
    tokenizer: PreTrainedTokenizerBase
    task: Task

    def complete(
        self,
        prompts: Sequence[Prompt],
        draw: Draw,
        mixture: Mixture | Sequence[Mixture],
        samples: int = 1,
        keep_frozen: bool = False,
        progress: Progress | None = None,
    ) -> list[Group]:
        """Sample G completions of each prompt and decode their texts. Arguments as in `Sampler.generate`."""
        groups = self.sampler.generate(prompts, self.limits, draw, mixture, samples, keep_frozen, progress)
        rollouts = flatten(groups)
        for rollout in rollouts:
            rollout.limits = self.limits
        decode_texts(rollouts, self.tokenizer, self.limits.end_ids)
        return groups

    def judge(self, groups: Sequence[Group]) -> None:
        """Set each rollout's judgement. Completions of a problem with the same answer are judged once."""
        rollouts = flatten(groups)
        golds = [r.prompt.problem.answer for r in rollouts]
        answers = [
            (self.task.template.extract(r.text), stated_answer(r.text, gold), gold)
            for r, gold in zip(rollouts, golds, strict=True)
        ]
        texts = {key: r.text for key, r in zip(answers, rollouts, strict=True)}
        judged = self.task.judge(list(texts.values()), [gold for _, _, gold in texts])
        judgement_of: dict[tuple[str | None, str | None, str], Judgement] = dict(zip(texts, judged, strict=True))
        for rollout, key in zip(rollouts, answers, strict=True):
            rollout.judgement = judgement_of[key]


def decode_texts(rollouts: Sequence[Rollout], tokenizer: PreTrainedTokenizerBase, end_ids: Sequence[int]) -> None:
    """Set each rollout's text: the completion without its end-of-sequence token.

    If a stop string ended the completion, all of its tokens are decoded.
    """
    for rollout in rollouts:
        ids = rollout.completion_ids
        rollout.text = str(tokenizer.decode(ids[:-1] if rollout.ended and ids[-1] in end_ids else ids))
