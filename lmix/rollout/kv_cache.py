"""A preallocated key-value cache for rows that start, grow and end at different times, in K stacked streams."""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig

from lmix.model.attention import attention_masks


class StreamCache:
    """Keys and values of S slots in each of K streams, stacked as the streams' rows are (stream 0's slots first).

    A row's tokens lie at places 0, 1, 2, ... without a gap, so the place of a token is its position, and what a row may
    attend to follows from its length alone. It stands in for transformers' `Cache` in passes of one token a row.

    Args:
        config: the backbone's configuration (its window, its layer types).
        streams: K.
        slots: S.
        length: tokens that a row can hold.
    """

    is_compileable = False

    def __init__(self, config: PretrainedConfig, streams: int, slots: int, length: int) -> None:
        self.config = config
        self.streams, self.slots, self.length = streams, slots, length
        self.layers: list[tuple[Tensor, Tensor]] = []
        self._rows = self._places = torch.empty(0)
        self._visible = 0

    def insert(self, prefill: DynamicCache, sources: Tensor, slots: Tensor) -> None:
        """Copy prompts' keys and values into slots: prompt `sources[i]` of every stream goes to slot `slots[i]`."""
        prompts = prefill.layers[0].keys.shape[0] // self.streams  # pyright: ignore
        source = self._stacked(sources, prompts)
        target = self._stacked(slots, self.slots)
        for i, layer in enumerate(prefill.layers):
            keys: Tensor = layer.keys  # pyright: ignore
            values: Tensor = layer.values  # pyright: ignore
            if i == len(self.layers):
                shape = (self.streams * self.slots, keys.shape[1], self.length)
                self.layers.append((keys.new_zeros(*shape, keys.shape[3]), values.new_zeros(*shape, values.shape[3])))
            self.layers[i][0][target, :, : keys.shape[2]] = keys[source]
            self.layers[i][1][target, :, : values.shape[2]] = values[source]

    def keep(self, slots: Tensor) -> None:
        """Drop all slots but these: rows that have ended leave the batch."""
        rows = self._stacked(slots, self.slots)
        for i, (keys, values) in enumerate(self.layers):  # one by one, so that each old tensor is freed at once
            self.layers[i] = (keys[rows], values[rows])
            del keys, values
        self.slots = len(slots)

    def step_arguments(self, positions: Tensor, visible: int, dtype: torch.dtype) -> dict[str, Any]:
        """What the decoder needs for a pass of one token a row.

        Args:
            positions: `[S]`, where the token goes.
            visible: places that the pass reads; no position reaches this one. Known to the host, so that nothing must
                be read back from a GPU.
            dtype: of additive masks.
        """
        self._visible = visible
        self._places = positions.repeat(self.streams)
        self._rows = torch.arange(len(self._places), device=positions.device)
        queries = self._places[:, None, None]
        keys = torch.arange(visible, device=positions.device)[None, None]
        masks = attention_masks(self.config, keys <= queries, queries, keys, dtype)
        return {
            "position_ids": self._places[:, None],
            "attention_mask": masks,
            "past_key_values": self,
            "use_cache": True,
        }

    def _stacked(self, indices: Tensor, rows: int) -> Tensor:
        """Indices of one stream's rows -> those of all streams."""
        return torch.cat([indices + k * rows for k in range(self.streams)])

    # what transformers calls

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write one token's keys and values a row, and return all that the pass can see."""
        for cache, new in zip(self.layers[layer], (keys, values), strict=True):
            cache[self._rows, :, self._places] = new[:, :, 0].to(cache.dtype)
        all_keys, all_values = self.layers[layer]
        return all_keys[:, :, : self._visible], all_values[:, :, : self._visible]

    def get_seq_length(self, layer: int = 0) -> int:
        return self._visible - 1
