"""Completion of free prompts by a mixed policy: a single prompt with streaming, or many at once."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lmix.evaluation.decoder import decode_texts
from lmix.model.backbone import BackboneConfig
from lmix.model.causal_lm import MixedPolicyForCausalLM
from lmix.model.end_tokens import end_tokens
from lmix.model.mixture import Mixture
from lmix.model.sources import check_places, count_places, room_after
from lmix.model.tokenizer import load_tokenizer
from lmix.rollout.engine import Engine
from lmix.rollout.limits import limits_of
from lmix.rollout.sampler import Sampler
from lmix.rollout.samplers import SamplerChoice
from lmix.rollout.types import Draw, Prompt, Rollout, flatten
from lmix.tasks.task import Problem, chat_ids

MOST_PLACES = 8192
"""Maximum tokens of a prompt and its completion, for samplers that allocate memory in advance."""
MOST_NEW_TOKENS = 512
"""Maximum tokens of a completion if `max_new_tokens` is null and the backbone's context would allow more."""


class Completer:
    """Completes conversations.

    The random numbers of a completion depend on the seed, the prompt's tokens and how often the prompt was completed
    before. So a prompt gets the same completion alone and in a batch, and each stream uses the same random numbers as
    the mixture.

    Args:
        model: the mixed policy and its mixture.
        system: the system message of the chat template; None uses the template's own.
        chat_template: put conversations into the tokenizer's chat template, if it has one.
        greedy: decode greedily.
        max_new_tokens: length limit in tokens, after which a completion is cut. None uses the rest of the backbone's
            context, at most 512.
        seed: random seed.
        chat_template_args: other variables of the chat template, such as {enable_thinking: false}.
        sampler: the sampler; None is lmix's own engine.
        stop: strings that end a completion, in addition to the end-of-sequence tokens.
    """

    def __init__(
        self,
        model: MixedPolicyForCausalLM,
        system: str | None = None,
        chat_template: bool = True,
        greedy: bool = False,
        max_new_tokens: int | None = None,
        seed: int = 0,
        chat_template_args: dict[str, Any] | None = None,
        sampler: Sampler | None = None,
        stop: Sequence[str] = (),
    ) -> None:
        self.model, self.policy, self.mixture = model, model.policy, model.mixture
        self.backbone: str = model.config.backbone["path"]
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(self.backbone)
        self.uses_chat = chat_template and bool(self.tokenizer.chat_template)
        self.system, self.chat_template_args = system, chat_template_args
        self.max_new_tokens = max_new_tokens
        self.draw = Draw(seed, greedy=greedy)
        self.sampler, self.stop = sampler, stop
        self.end_ids = tuple(end_tokens(self.policy.backbone, self.tokenizer))
        self._asked: Counter[tuple[int, ...]] = Counter()

    def use(self, choice: SamplerChoice) -> None:
        """Use another sampler than lmix's engine. Raises the errors of `SamplerChoice.make`."""
        backbone = BackboneConfig(**self.model.config.backbone)
        counts = [count for model in self.policy.models if (count := count_places(model.config)) is not None]
        places = min([*counts, MOST_PLACES])
        self.sampler = choice.make(self.policy, backbone, self.mixture, 64, places)
        self.sampler.sync(self.policy)

    def prompt(self, messages: Sequence[dict[str, str]]) -> Prompt:
        """Tokenise a conversation; without a chat template, only its last message.

        Raises:
            ValueError: the prompt is empty, or too long for the backbone's context.
        """
        if self.uses_chat:
            ids = chat_ids(self.tokenizer, messages, self.system or None, self.chat_template_args)
        else:
            ids = self.tokenizer(messages[-1]["content"])["input_ids"]
        if not ids:
            raise ValueError("the prompt is empty")
        for model in self.policy.models:
            check_places(self.backbone, len(ids), self.max_new_tokens or 1, model.config)  # pyright: ignore
        self._asked[tuple(ids)] += 1
        return Prompt(Problem(prompt_key(ids, self._asked[tuple(ids)]), messages[-1]["content"], ""), list(ids))

    def complete(
        self,
        prompts: Sequence[Prompt],
        mixture: Mixture | None = None,
        on_tokens: Callable[[Tensor], None] | None = None,
    ) -> list[Rollout]:
        """Sample a completion of each prompt.

        Args:
            prompts: the prompts.
            mixture: the mixture; None uses the model's.
            on_tokens: for a single prompt, called with each token as it is sampled.
        """
        # when streaming, check for the end after every token, so that no token after it is shown
        engine = Engine(self.policy, check_every=1 if on_tokens else None, on_tokens=on_tokens)
        new_tokens = self.new_tokens(max(len(prompt.ids) for prompt in prompts))
        limits = limits_of(self.tokenizer, self.end_ids, new_tokens, self.stop)
        rollouts = flatten((self.sampler or engine).generate(prompts, limits, self.draw, mixture or self.mixture))
        decode_texts(rollouts, self.tokenizer, self.end_ids)
        return rollouts

    def new_tokens(self, longest_prompt: int) -> int:
        """The length limit of completions after prompts of at most this many tokens."""
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        return room_after(longest_prompt, (model.config for model in self.policy.models), MOST_NEW_TOKENS)

    def text(self, ids: Sequence[int]) -> str:
        """Decode tokens to text, without end-of-sequence tokens."""
        return str(self.tokenizer.decode([token for token in ids if token not in self.end_ids]))


def prompt_key(ids: Sequence[int], times: int) -> int:
    """A hash of a prompt as an int64, the same in every process, which its random numbers depend on.

    Args:
        ids: the prompt's tokens.
        times: how often the prompt has been completed, including this time; each time gets different random numbers.
    """
    digest = hashlib.blake2b(json.dumps([list(ids), times]).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)
