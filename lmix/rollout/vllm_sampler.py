"""Rollouts by vLLM: one request per completion, wherever vLLM runs (`vllm_local.py`, `vllm_servers.py`)."""

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
    """Requests with the same number share their prompt, and so its keys and values."""
    weights: tuple[float, ...]
    """Weights of the mixture's streams."""
    sampling: dict[str, Any] = field(default_factory=dict)
    """Further sampling parameters, by vLLM's names."""


@dataclass(frozen=True)
class Completion:
    """A completion that vLLM has drawn; T tokens."""

    ids: list[int]
    log_probs: list[float]
    """`[T]`, under the distribution that the tokens were drawn from."""
    stopped: bool
    """Whether it ended at an end token or a stop string, and not at the maximum length."""


class VLLMClient(Protocol):
    """A vLLM that serves a folder of `lmix export`, wherever it runs."""

    def complete(self, requests: Sequence[Request], progress: Progress | None) -> list[Completion]:
        """Draw a completion for each request, and return them in the order of the requests."""
        ...

    def set_mixture(self, mixture: Mixture) -> None:
        """Set the mixture. Its weights are for requests without their own; the rest applies to all requests."""
        ...

    def set_policy(self, folder: Path) -> None:
        """Load the policy's adapter from a peft folder, and drop cached keys and values of the previous one."""
        ...


class VLLMSampler:
    """Draws completions by vLLM; a `Sampler`.

    Each completion has a seed of its own, from (seed, step, problem, sample). So, except for rounding, it does not
    depend on what else is drawn. The tokens differ from those of lmix's engine, which draws them in another way. vLLM
    returns no hidden states, so the update runs passes of the frozen streams.

    Args:
        vllm: the vLLM that draws.
        mixture: the mixture that `vllm` was started with.
        folder: where adapters are written for vLLM to read; None makes a temporary folder, in memory if possible.
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
        """Write the policy's adapter (a few MB), and make vLLM load it."""
        shared = torch.distributed.is_available() and torch.distributed.is_initialized() and self._temporary is None
        if not shared or torch.distributed.get_rank() == 0:
            policy.save_policy(self.folder / POLICY)
            self.vllm.set_policy(self.folder / POLICY)
        if shared:  # all ranks have the same folder and the same servers
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
        """Set the kind, temperature and plausibility of vLLM's mixture. Weights are sent with each request.

        Raises:
            ValueError: mixtures that vLLM can't draw from together, or at all.
        """
        if any(mixture.depends_on_token for mixture in mixtures):
            raise ValueError("vLLM does not support weights that depend on the token: use lmix's engine")
        kinds = {(mixture.kind, mixture.temperature, mixture.plausibility) for mixture in mixtures}
        if len(kinds) != 1:
            raise ValueError(f"mixtures drawn together may differ only in their weights, but got {kinds}")
        own = (self.mixture.kind, self.mixture.temperature, self.mixture.plausibility)
        if kinds != {own}:
            self.mixture = replace(mixtures[0], weights=self._weights(mixtures[0]))
            self.vllm.set_mixture(self.mixture)

    def _weights(self, mixture: Mixture) -> tuple[float, ...]:
        """A weight for each stream that vLLM runs; 0 for streams that the mixture does not name."""
        return mixture.weights + (0.0,) * (len(self.mixture.weights) - len(mixture.weights))


def sampling_settings(limits: Limits, greedy: bool) -> dict[str, Any]:
    """Limits by vLLM's names. Only `limits.end_ids` end a completion, whatever end tokens vLLM has configured."""
    settings = {
        "max_tokens": limits.max_new_tokens,
        "min_tokens": limits.min_new_tokens,
        "temperature": 0.0 if greedy else 1.0,  # the mixture applies its own temperature
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "stop_token_ids": list(limits.end_ids),
        "ignore_eos": True,
        "logprobs": 0,
    }
    if limits.stop is not None:
        # vLLM searches decoded text: decode all of it, and keep the token that completes a string
        settings |= {"stop": list(limits.stop.strings), "include_stop_str_in_output": True}
        settings |= {"skip_special_tokens": False, "spaces_between_special_tokens": False}
    return settings


def fill(rollout: Rollout, completion: Completion, limits: Limits) -> None:
    """Copy a completion into a rollout, up to where lmix's engine would have ended it.

    Raises:
        ValueError: vLLM has ended it where lmix would have continued.
    """
    end = limits.end_of(completion.ids)
    if end is None and completion.stopped:
        raise ValueError(
            f"vLLM ended a completion after {len(completion.ids)} tokens without an end token or a stop string: use "
            "lmix's engine for this tokenizer, or remove the stop strings"
        )
    rollout.completion_ids = completion.ids[:end]
    rollout.log_probs = torch.tensor(completion.log_probs[:end], dtype=torch.float32)
    rollout.ended = end is not None
