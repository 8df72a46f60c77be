"""Completions that are drawn by any sampler, decoded to text and judged: the one way of training and all evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from lmix.model.mixture import Mixture
from lmix.rollout.limits import Limits
from lmix.rollout.sampler import Progress, Sampler
from lmix.rollout.types import Draw, Group, Prompt, Rollout, flatten
from lmix.tasks.task import Judgement, Task


@dataclass
class Decoder:
    """A sampler with what its completions are measured by."""

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
        """Draw G completions of each prompt and decode their texts; arguments as in `Sampler.generate`."""
        groups = self.sampler.generate(prompts, self.limits, draw, mixture, samples, keep_frozen, progress)
        rollouts = flatten(groups)
        for rollout in rollouts:
            rollout.limits = self.limits
        decode_texts(rollouts, self.tokenizer, self.limits.end_ids)
        return groups

    def judge(self, groups: Sequence[Group]) -> None:
        """Fill in each rollout's judgement. An answer that several of a problem's completions give is judged once."""
        rollouts = flatten(groups)
        pairs = [(self.task.template.extract(r.text), r.prompt.problem.answer) for r in rollouts]
        texts = {pair: r.text for pair, r in zip(pairs, rollouts, strict=True)}
        judged = self.task.judge(list(texts.values()), [gold for _, gold in texts])
        judgement_of: dict[tuple[str | None, str], Judgement] = dict(zip(texts, judged, strict=True))
        for rollout, pair in zip(rollouts, pairs, strict=True):
            rollout.judgement = judgement_of[pair]


def decode_texts(rollouts: Sequence[Rollout], tokenizer: PreTrainedTokenizerBase, end_ids: Sequence[int]) -> None:
    """Fill in each rollout's text: the completion without its end-of-sequence token. Where a stop string ended it, the
    text is that of all its tokens."""
    for rollout in rollouts:
        ids = rollout.completion_ids
        rollout.text = str(tokenizer.decode(ids[:-1] if rollout.ended and ids[-1] in end_ids else ids))
