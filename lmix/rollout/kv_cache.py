"""A preallocated key-value cache for rows that start, grow and end at different times, in K stacked streams."""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig

from lmix.model.attention import attention_masks


class StreamCache:
    """Keys and values of S slots for each of K streams, stacked with the slots of stream 0 first.

    A row's tokens are stored at indices 0, 1, 2, ... without a gap. So the index of a token is its position, and the
    length of a row says what it may attend to. The tensors keep their addresses, even when slots are dropped.

    Args:
        config: the backbone's configuration (its window, its layer types).
        streams: K.
        slots: S.
        length: maximum tokens of a row.
    """

    def __init__(self, config: PretrainedConfig, streams: int, slots: int, length: int) -> None:
        self.config = config
        self.streams, self.slots, self.length = streams, slots, length
        self.layers: list[tuple[Tensor, Tensor]] = []
        """Keys and values of each layer: views of the first rows of `_whole`."""
        self._whole: list[tuple[Tensor, Tensor]] = []

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
                pair = (keys.new_zeros(*shape, keys.shape[3]), values.new_zeros(*shape, values.shape[3]))
                self._whole.append(pair)
                self.layers.append(pair)
            self.layers[i][0][target, :, : keys.shape[2]] = keys[source]
            self.layers[i][1][target, :, : values.shape[2]] = values[source]

    def keep(self, slots: Tensor) -> None:
        """Drop all slots but these, in place: rows that have ended leave the batch."""
        rows = self._stacked(slots, self.slots)
        for pair in self.layers:
            for cache in pair:
                cache[: len(rows)] = cache[rows]
        self.resize(len(slots))

    def resize(self, slots: int) -> None:
        """Use only the first `slots` slots of the storage."""
        self.slots = slots
        rows = self.streams * slots
        self.layers = [(keys[:rows], values[:rows]) for keys, values in self._whole]

    def step_arguments(self, positions: Tensor, visible: int, dtype: torch.dtype) -> dict[str, Any]:
        """The decoder's arguments for a pass with one token per row.

        Args:
            positions: `[S]`, position of each row's token.
            visible: number of positions that the pass reads, larger than every position. An integer of the host, so
                that nothing must be read back from a GPU.
            dtype: dtype of additive masks.
        """
        places = positions.repeat(self.streams)
        queries = places[:, None, None]
        keys = torch.arange(visible, device=positions.device)[None, None]
        masks = attention_masks(self.config, keys <= queries, queries, keys, dtype)
        return {
            "position_ids": places[:, None],
            "attention_mask": masks,
            "past_key_values": CacheStep(self.layers, places, visible),
            "use_cache": True,
        }

    def _stacked(self, indices: Tensor, rows: int) -> Tensor:
        """Indices of one stream's rows -> those of all streams."""
        return torch.cat([indices + k * rows for k in range(self.streams)])


class CacheStep:
    """The cache in a pass with one token per row; replaces transformers' `Cache`.

    Args:
        layers: keys and values of each layer.
        places: `[K * S]`, position of each row's token.
        visible: number of positions that the pass reads.
    """

    is_compileable = False

    def __init__(self, layers: list[tuple[Tensor, Tensor]], places: Tensor, visible: int) -> None:
        self.layers, self.places, self.visible = layers, places, visible
        self.rows = torch.arange(len(places), device=places.device)

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store the keys and values of each row's token, and return those of all visible positions."""
        all_keys, all_values = self.layers[layer]
        all_keys[self.rows, :, self.places] = keys[:, :, 0].to(all_keys.dtype)
        all_values[self.rows, :, self.places] = values[:, :, 0].to(all_values.dtype)
        return all_keys[:, :, : self.visible], all_values[:, :, : self.visible]

    def get_seq_length(self, layer: int = 0) -> int:
        return self.visible - 1
