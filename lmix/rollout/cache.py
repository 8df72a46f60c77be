"""A preallocated key-value cache for rows that start, grow and end at different times, in K stacked streams."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig

from lmix.model.backbone import attention_masks


class StreamCache:
    """Keys and values of slots in K streams, stacked as the streams' rows are (stream 0's slots first).

    A row's tokens lie at places 0, 1, 2, ... without a gap, so the place of a token is its position, and what a row may
    attend to follows from its length alone. It stands in for transformers' `Cache` in passes of one token a row.

    Args:
        config: the backbone's configuration (its window, its layer types).
        spans: which slots each stream has, K of them; slots that a stream does not run have no place there.
        length: tokens that a row can hold.
    """

    is_compileable = False

    def __init__(self, config: PretrainedConfig, spans: Sequence[slice], length: int) -> None:
        self.config = config
        self.spans, self.length = list(spans), length
        self.layers: list[tuple[Tensor, Tensor]] = []
        self._rows = self._places = torch.empty(0)
        self._visible = 0

    @property
    def size(self) -> int:
        """Rows of all streams."""
        return sum(span.stop - span.start for span in self.spans)

    def rows(self, slots: Sequence[int]) -> list[tuple[int, int, int]]:
        """(stream, place in `slots`, row) of each stream that has the slot, stream after stream."""
        found, first = [], 0
        for k, span in enumerate(self.spans):
            found += [(k, i, first + s - span.start) for i, s in enumerate(slots) if span.start <= s < span.stop]
            first += span.stop - span.start
        return found

    def insert(self, prefill: DynamicCache, sources: Sequence[int], slots: Sequence[int]) -> None:
        """Copy prompts' keys and values into slots: prompt `sources[i]` of every stream goes to slot `slots[i]`."""
        device = prefill.layers[0].keys.device  # pyright: ignore
        prompts = prefill.layers[0].keys.shape[0] // len(self.spans)  # pyright: ignore
        rows = self.rows(slots)
        source = torch.tensor([k * prompts + sources[i] for k, i, _ in rows], device=device)
        target = torch.tensor([row for _, _, row in rows], device=device)
        for i, layer in enumerate(prefill.layers):
            keys: Tensor = layer.keys  # pyright: ignore
            values: Tensor = layer.values  # pyright: ignore
            if i == len(self.layers):
                shape = (self.size, keys.shape[1], self.length)
                self.layers.append((keys.new_zeros(*shape, keys.shape[3]), values.new_zeros(*shape, values.shape[3])))
            self.layers[i][0][target, :, : keys.shape[2]] = keys[source]
            self.layers[i][1][target, :, : values.shape[2]] = values[source]

    def keep(self, slots: Sequence[int]) -> None:
        """Drop all slots but these, in rising order: rows that have ended leave the batch."""
        at = torch.tensor([row for _, _, row in self.rows(slots)], device=self.layers[0][0].device)
        for i, (keys, values) in enumerate(self.layers):  # one by one, so that each old tensor is freed at once
            self.layers[i] = (keys[at], values[at])
            del keys, values
        before = [(bisect_left(slots, span.start), bisect_left(slots, span.stop)) for span in self.spans]
        self.spans = [slice(start, stop) for start, stop in before]

    def step_arguments(self, positions: Tensor, visible: int, dtype: torch.dtype) -> dict[str, Any]:
        """What the decoder needs for a pass of one token a row.

        Args:
            positions: `[slots]`, where the token goes.
            visible: no position reaches this one; known to the host, so that nothing must be read back from a GPU.
            dtype: of additive masks.
        """
        self._visible = visible
        self._places = torch.cat([positions[span] for span in self.spans])
        self._rows = torch.arange(self.size, device=positions.device)
        queries = self._places[:, None, None]
        keys = torch.arange(visible, device=positions.device)[None, None]
        masks = attention_masks(self.config, keys <= queries, queries, keys, dtype)
        return {
            "position_ids": self._places[:, None],
            "attention_mask": masks,
            "past_key_values": self,
            "use_cache": True,
        }

    # what transformers calls

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write one token's keys and values a row, and return all that the pass can see."""
        for cache, new in zip(self.layers[layer], (keys, values), strict=True):
            cache[self._rows, :, self._places] = new[:, :, 0].to(cache.dtype)
        all_keys, all_values = self.layers[layer]
        return all_keys[:, :, : self._visible], all_values[:, :, : self._visible]

    def get_seq_length(self, layer: int = 0) -> int:
        return self._visible - 1
