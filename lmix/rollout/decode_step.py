"""The device's part of sampling: buffers of S slots, the prefill, and a pass that draws each slot's next token.

This module does not know which rollout is in which slot, or which slots are free; only the scheduler does.

Legend: S slots, K streams of the mixture, P prompts, C maximum tokens of a completion, H hidden size of a stream.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

from lmix.functional import without_tokens
from lmix.model.mixed_policy import MixedPolicy
from lmix.model.mixture import POLICY, Mixture, RowMixtures
from lmix.rollout.kv_cache import StreamCache
from lmix.rollout.limits import Limits
from lmix.rollout.packing import pad_right
from lmix.rollout.randomness import uniforms
from lmix.rollout.sampling import greedy, inverse_cdf

EXTENT = 64
"""Attention reads the cache in multiples of this many positions, so that few shapes must be compiled or recorded."""
BUFFERS = ("keys", "samples", "positions", "newest", "counts", "tokens", "log_probs", "states", "stops")
"""Buffers with one row per slot, besides keys and values and kept hidden states."""
Row = tuple[list[int], Tensor, dict[str, Tensor]]
"""A completion: token ids, log-probabilities `[C]`, hidden states `[C, H]` of each kept stream."""


class DecodeStep:
    """The device's part of one call of `generate`.

    Args:
        policy: the policy to sample from.
        mixture: one mixture, or one for each of a prompt's samples.
        limits: where completions end.
        greedy: take the most probable token.
        slots: S.
        length: maximum tokens of a prompt with its completion.
        keep_frozen: keep the frozen streams' hidden states.
    """

    def __init__(
        self,
        policy: MixedPolicy,
        mixture: Mixture | RowMixtures,
        limits: Limits,
        greedy: bool,
        slots: int,
        length: int,
        keep_frozen: bool,
    ) -> None:
        self.policy, self.greedy, self.max_new_tokens = policy, greedy, limits.max_new_tokens
        self.device = policy.device
        self.mixture = mixture
        self.streams = self.mixture.streams
        self.parts = policy.parts(self.streams)
        self.caches = [StreamCache(part.model.config, len(part.streams), slots, length) for part in self.parts]
        self.slots, self.length = slots, length
        self.end_ids = self._buffer(len(limits.end_ids))
        self.end_ids.copy_(torch.tensor(limits.end_ids, dtype=torch.long))
        # for each slot: the key of its random numbers, its sample's index, position and id of its newest token, ...
        self.keys, self.samples, self.positions, self.newest = (self._buffer(slots) for _ in range(4))
        # ... how many tokens it has drawn, and their ids
        self.counts = self._buffer(slots)
        self.tokens = self._buffer(slots, self.max_new_tokens)
        self.log_probs = torch.zeros(slots, self.max_new_tokens, device=self.device)
        self.kept = [name for name in self.streams if keep_frozen and name != POLICY]
        self.frozen: dict[str, Tensor] = {}
        self._whole_frozen: dict[str, Tensor] = {}
        self.min_new_tokens = limits.min_new_tokens
        self.stop = None if limits.stop is None else limits.stop.to(self.device)
        # with stop strings: each slot's state of the automaton, and which of its tokens complete a string
        self.states = None if self.stop is None else self._buffer(slots)
        self.stops = None if self.stop is None else self._buffer(slots, self.max_new_tokens).bool()
        # the addresses must stay when slots are dropped, and from one rollout phase to the next
        self._whole = {name: buffer for name in BUFFERS if (buffer := getattr(self, name)) is not None}

    def restart(self, mixture: Mixture | RowMixtures) -> None:
        """Start another rollout phase with the same buffers.

        Args:
            mixture: may differ from the previous one in its weights only.
        """
        if isinstance(self.mixture, RowMixtures) and isinstance(mixture, RowMixtures):
            self.mixture.weights_BK.copy_(mixture.weights_BK)
        else:
            self.mixture = mixture
        self._resize(len(self._whole["keys"]))

    def _buffer(self, *shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=torch.long, device=self.device)

    def prefill(self, prompts: Sequence[Sequence[int]], slots: Sequence[int], keys: Tensor) -> Tensor:
        """Read each prompt once per stream, copy its keys and values to its G slots, and draw their first tokens.

        Args:
            prompts: token ids of each prompt.
            slots: G slots for each prompt.
            keys: keys of the random numbers, one for each slot.

        Returns:
            The tokens, one for each of `slots`.
        """
        lengths_P = torch.tensor([len(ids) for ids in prompts], device=self.device)
        samples = len(slots) // len(prompts)
        prefills = [DynamicCache() for _ in self.parts]
        hidden_K = self.policy.hidden(
            pad_right(prompts).to(self.device),
            self.streams,
            [{"past_key_values": prefill, "use_cache": True} for prefill in prefills],
        )
        all_prompts = torch.arange(len(prompts), device=self.device)
        last_K = [hidden_PTH[all_prompts, lengths_P - 1] for hidden_PTH in hidden_K]
        at = torch.tensor(slots, device=self.device)
        of_prompt = all_prompts.repeat_interleave(samples)
        for cache, prefill in zip(self.caches, prefills, strict=True):
            cache.insert(prefill, of_prompt, at)
        self.keys[at] = keys
        self.samples[at] = torch.arange(samples, device=self.device).repeat(len(prompts))
        self.positions[at] = lengths_P[of_prompt] - 1
        self.counts[at] = 0
        if self.states is not None:
            self.states[at] = 0
        return self._choose([last_PH[of_prompt] for last_PH in last_K], at)

    def extent(self, visible: int) -> int:
        """Number of cache positions that a pass reads if the longest live row has `visible` tokens: that number rounded
        up to a multiple of `EXTENT`, at most `length`."""
        return min(-(-visible // EXTENT) * EXTENT, self.length)

    def decode(self, extent: int) -> Tensor:
        """Feed every slot's newest token, and draw the next. Free slots are computed too, and ignored.

        This function is compiled and recorded, so it only uses buffers with fixed addresses, and the host never waits
        for the device.

        Args:
            extent: a result of the method `extent`.

        Returns:
            The tokens `[S]`.
        """
        # free slots may be past the end: they keep overwriting the last position
        positions = self.positions.clamp(max=extent - 1)
        pairs = zip(self.caches, self.parts, strict=True)
        arguments = [cache.step_arguments(positions, extent, part.model.dtype) for cache, part in pairs]
        hidden_K = self.policy.hidden(self.newest[:, None], self.streams, arguments)
        return self._choose(
            [hidden_STH[:, 0] for hidden_STH in hidden_K], torch.arange(len(positions), device=self.device)
        )

    def _choose(self, hidden_K: list[Tensor], at: Tensor) -> Tensor:
        """Draw a token for the slots `at` from the streams' hidden states, and store it."""
        if isinstance(self.mixture, RowMixtures):
            mixture = self.mixture.rows(self.samples[at])
        else:
            mixture = self.mixture.of_tokens(self.counts[at])
        logits = self.policy.mixed_logits(hidden_K, mixture)
        if self.min_new_tokens:
            logits = without_tokens(logits, self.end_ids, self.counts[at] < self.min_new_tokens)
        if self.greedy:
            tokens, log_probs = greedy(logits)
        else:
            tokens, log_probs = inverse_cdf(logits, uniforms(self.keys[at], self.counts[at]))
        places = self.counts[at].clamp(max=self.max_new_tokens - 1)
        writes = self.counts[at] < self.max_new_tokens
        self.tokens[at, places] = torch.where(writes, tokens, self.tokens[at, places])
        self.log_probs[at, places] = torch.where(writes, log_probs, self.log_probs[at, places])
        if self.stop is not None and self.states is not None and self.stops is not None:
            self.states[at], completes = self.stop.step(self.states[at], tokens)
            completes &= self.counts[at] + 1 >= self.min_new_tokens
            self.stops[at, places] = torch.where(writes, completes, self.stops[at, places])
        for name, hidden_SH in zip(self.streams, hidden_K, strict=True):
            if name in self.kept:
                if name not in self.frozen:
                    shape = len(self.counts), self.max_new_tokens, hidden_SH.shape[-1]
                    self.frozen[name] = self._whole_frozen[name] = hidden_SH.new_zeros(shape)
                kept = self.frozen[name]
                kept[at, places] = torch.where(writes[:, None], hidden_SH, kept[at, places])
        self.newest[at] = tokens
        self.counts[at] += 1
        self.positions[at] += 1
        return tokens

    def first_ends(self, tokens: int) -> list[int]:
        """For each slot, the index of the first of its newest `tokens` tokens that ends its completion;
        `max_new_tokens` if none does."""
        window = torch.arange(tokens, device=self.device)
        places = (self.counts.clamp(max=self.max_new_tokens)[:, None] - 1 - window).clamp(min=0)
        ends = torch.isin(self.tokens.gather(1, places), self.end_ids)
        if self.stops is not None:
            ends |= self.stops.gather(1, places)
        return places.masked_fill(~ends, self.max_new_tokens).amin(dim=1).tolist()

    def read(self, rows: Sequence[tuple[int, int]]) -> list[Row]:
        """The completions of (slot, number of tokens) pairs, copied to the host together."""
        if not rows:
            return []
        at, longest = torch.tensor([slot for slot, _ in rows], device=self.device), max(count for _, count in rows)
        tokens = self.tokens[at, :longest].tolist()
        log_probs = self.log_probs[at, :longest].cpu()
        frozen = {name: kept[at, :longest].cpu() for name, kept in self.frozen.items()}
        # clone, so that a row does not keep the memory of the others
        return [
            (tokens[i][:count], log_probs[i, :count].clone(), {n: h[i, :count].clone() for n, h in frozen.items()})
            for i, (_, count) in enumerate(rows)
        ]

    def shrink(self, slots: Sequence[int]) -> None:
        """Keep only these slots, in place."""
        at = torch.tensor(slots, device=self.device)
        for cache in self.caches:
            cache.keep(at)
        for whole in (*self._whole.values(), *self._whole_frozen.values()):
            whole[: len(slots)] = whole[at]
        self._resize(len(slots))

    def _resize(self, slots: int) -> None:
        self.slots = slots
        for cache in self.caches:
            cache.resize(slots)
        for name, whole in self._whole.items():
            setattr(self, name, whole[:slots])
        self.frozen = {name: whole[:slots] for name, whole in self._whole_frozen.items()}
