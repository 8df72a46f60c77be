"""Read a .gguf file's header without its vocabulary.

transformers reads the header again for the configuration, the tokenizer and the weights, and gguf's own reader makes
several numpy views of every token and merge: 10 to 40 seconds a time for 150,000 tokens. transformers needs only the
length of the vocabulary here, because it reads the tokenizer with a separate, fast reader.
"""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gguf
import numpy as np
from gguf import GGUFReader, GGUFValueType

LONG = 4096
"""Arrays with more elements than this belong to the vocabulary: tokens, merges, scores, token types."""
TOKENS = "tokenizer.ggml.tokens"


class HeaderReader(GGUFReader):
    """gguf's reader, but it skips long arrays and reads each token as an empty string."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if (tokens := self.fields.get(TOKENS)) and not tokens.data:
            length = int(tokens.parts[-3][0])  # the vocabulary's size, for models that have no field for it
            self.fields[TOKENS] = tokens._replace(data=[-1] * length, types=[GGUFValueType.STRING])

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        if raw_type == GGUFValueType.ARRAY and self.byte_order == "I":
            data: Any = self.data
            kind, length = struct.unpack_from("<IQ", data, orig_offs)
            start = orig_offs + 12
            if length > LONG and (end := self._end_of_array(start, GGUFValueType(kind), length)):
                counted = self.data[orig_offs:start]
                # the base class continues after the total size of the parts
                parts = [counted[:4], counted[4:].view(np.uint64), self.data[start:end], np.empty(0, np.uint8)]
                return end - orig_offs, parts, [], [GGUFValueType.ARRAY, GGUFValueType(kind)]
        return super()._get_field_parts(orig_offs, raw_type)

    def _end_of_array(self, start: int, kind: GGUFValueType, length: int) -> int | None:
        """The offset after an array of strings or numbers; None for other types of elements."""
        if kind in self.gguf_scalar_to_np:
            return start + length * np.dtype(self.gguf_scalar_to_np[kind]).itemsize
        if kind != GGUFValueType.STRING:
            return None
        data: Any = self.data
        for _ in range(length):
            start += 8 + struct.unpack_from("<Q", data, start)[0]
        return start


@contextmanager
def without_vocabulary() -> Iterator[None]:
    """Inside this context, `gguf.GGUFReader` skips the vocabulary of .gguf files."""
    before = gguf.GGUFReader
    gguf.GGUFReader = HeaderReader
    try:
        yield
    finally:
        gguf.GGUFReader = before
