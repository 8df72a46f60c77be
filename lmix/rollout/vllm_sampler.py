"""Rollouts by vLLM: one request a completion, whatever runs vLLM (`vllm_local.py`, `vllm_servers.py`)."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from lmix.model.mixed_policy import MixedPolicy
from lmix.model.mixture import POLICY, Mixture
from lmix.rollout.limits import Limits
from lmix.rollout.randomness import rollout_keys
from lmix.rollout.sampler import Progress
from lmix.rollout.types import Draw, Group, Prompt, Rollout, flatten


@dataclass(frozen=True)
class Request:
    """One completion to be drawn."""

    prompt_ids: list[int]
    group: int
    """Requests of the same number share their prompt, and so its keys and values."""
    weights: tuple[float, ...]
    """Of the mixture's streams."""
    sampling: dict[str, Any] = field(default_factory=dict)
    """Further parameters, by vLLM's names."""


@dataclass(frozen=True)
class Completion:
    """What vLLM drew; T tokens."""

    ids: list[int]
    log_probs: list[float]
    """`[T]`, under what the tokens were drawn from."""
    stopped: bool
    """Whether vLLM ended it before the longest that it may be."""


class VLLMClient(Protocol):
    """A vLLM that serves a folder of `lmix export`, wherever it runs."""

    def complete(self, requests: Sequence[Request], progress: Progress | None) -> list[Completion]:
        """Draw all of them, in order."""
        ...

    def set_mixture(self, mixture: Mixture) -> None:
        """Of requests without weights of their own; its kind, temperature and plausibility are those of all."""
        ...

    def set_policy(self, folder: Path) -> None:
        """Take over the policy's adapter from a peft folder, and forget keys and values of the former one."""
        ...


class VLLMSampler:
    """Draws completions by vLLM; a `Sampler`.

    Each completion has a seed of its own, from (seed, step, problem, sample), so it does not depend on what else is
    drawn, but for rounding. The tokens are not those of lmix's engine, which draws them in another way. No hidden
    states come back: the update makes passes of the frozen streams.

    Args:
        vllm: what draws.
        mixture: what `vllm` was started with.
        folder: where adapters are written for vLLM to read; None makes a folder in memory, where there is one.
    """

    def __init__(self, vllm: VLLMClient, mixture: Mixture, folder: Path | None = None) -> None:
        self.vllm, self.mixture = vllm, mixture
        self._temporary = None
        if folder is None:
            shared = Path("/dev/shm")
            self._temporary = tempfile.TemporaryDirectory(prefix="lmix-", dir=shared if shared.is_dir() else None)
            folder = Path(self._temporary.name)
        self.folder = folder

    def sync(self, policy: MixedPolicy) -> None:
        """Write the policy's adapter, a few MB, and let vLLM read it in place."""
        shared = torch.distributed.is_available() and torch.distributed.is_initialized() and self._temporary is None
        if not shared or torch.distributed.get_rank() == 0:
            policy.save_policy(self.folder / POLICY)
            self.vllm.set_policy(self.folder / POLICY)
        if shared:  # one folder and the same servers for all ranks
            torch.distributed.barrier()

    def generate(
        self,
        prompts: Sequence[Prompt],
        limits: Limits,
        draw: Draw,
        mixture: Mixture | Sequence[Mixture],
        samples: int = 1,
        keep_frozen: bool = False,
        progress: Progress | None = None,
    ) -> list[Group]:
        """See `Sampler.generate`."""
        groups = [Group(prompt, [Rollout(prompt, g) for g in range(samples)], draw) for prompt in prompts]
        rollouts = flatten(groups)
        if not rollouts or limits.max_new_tokens < 1:
            return groups
        mixtures = [mixture] * samples if isinstance(mixture, Mixture) else list(mixture)
        self._settle(mixtures)
        keys = rollout_keys(rollouts, draw)
        settings = sampling_settings(limits, draw.greedy)
        requests = [
            Request(
                rollout.prompt.ids,
                number // samples,
                self._weights(mixtures[rollout.sample]),
                settings if draw.greedy else settings | {"seed": key & (2**62 - 1)},
            )
            for number, (rollout, key) in enumerate(zip(rollouts, keys.tolist(), strict=True))
        ]
        for rollout, completion in zip(rollouts, self.vllm.complete(requests, progress), strict=True):
            fill(rollout, completion, limits)
        return groups

    def _settle(self, mixtures: Sequence[Mixture]) -> None:
        """Let vLLM mix in this way; weights travel with each request.

        Raises:
            ValueError: mixtures that vLLM can't draw from together, or at all.
        """
        if any(mixture.depends_on_token for mixture in mixtures):
            raise ValueError("vLLM draws from mixtures whose weights are the same at all tokens: use lmix's engine")
        kinds = {(mixture.kind, mixture.temperature, mixture.plausibility) for mixture in mixtures}
        if len(kinds) != 1:
            raise ValueError(f"mixtures drawn together must agree in all but their weights, not be {kinds}")
        own = (self.mixture.kind, self.mixture.temperature, self.mixture.plausibility)
        if kinds != {own}:
            self.mixture = replace(mixtures[0], weights=self._weights(mixtures[0]))
            self.vllm.set_mixture(self.mixture)

    def _weights(self, mixture: Mixture) -> tuple[float, ...]:
        """A weight for each stream that vLLM runs; a mixture of the first two says nothing of the others."""
        return mixture.weights + (0.0,) * (len(self.mixture.weights) - len(mixture.weights))


def sampling_settings(limits: Limits, greedy: bool) -> dict[str, Any]:
    """Limits by vLLM's names. Tokens end completions by their number alone, whatever vLLM's own settings are."""
    settings = {
        "max_tokens": limits.max_new_tokens,
        "min_tokens": limits.min_new_tokens,
        "temperature": 0.0 if greedy else 1.0,  # the mixture's own temperature is in its weights
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "stop_token_ids": list(limits.end_ids),
        "ignore_eos": True,
        "logprobs": 0,
    }
    if limits.stop is not None:
        # vLLM looks for them in the text that it decodes: all of it, and with the token that completes one
        settings |= {"stop": list(limits.stop.strings), "include_stop_str_in_output": True}
        settings |= {"skip_special_tokens": False, "spaces_between_special_tokens": False}
    return settings


def fill(rollout: Rollout, completion: Completion, limits: Limits) -> None:
    """Take a completion over, up to where lmix's engine would have ended it.

    Raises:
        ValueError: vLLM has ended it where lmix would have gone on.
    """
    end = limits.end_of(completion.ids)
    if end is None and completion.stopped:
        raise ValueError(
            f"vLLM ended a completion after {len(completion.ids)} tokens where no end token and no stop string is: use "
            "lmix's engine for this tokenizer, or leave the stop strings out"
        )
    rollout.completion_ids = completion.ids[:end]
    rollout.log_probs = torch.tensor(completion.log_probs[:end], dtype=torch.float32)
    rollout.ended = end is not None
