"""Where a completion ends: at an end token, at a stop string, or at the maximum length.

Legend: A states of the automaton, V tokens of the vocabulary, N tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lmix.model.token_bytes import token_bytes


@dataclass(frozen=True, eq=False)
class StopStrings:
    """Strings that end a completion, as an automaton over its tokens (Aho and Corasick, 1975).

    The state is the longest beginning of a string that the text ends with so far. So a string is found however it is
    split into tokens, one token at a time on the device, without decoding the text. State 0 is an empty completion's.
    """

    strings: tuple[str, ...]
    next_state: Tensor
    """`[A, V + 1]`, int16. The last column is for tokens without text."""
    completes: Tensor
    """`[A, V + 1]`, bool: whether a string ends inside the token, at its last character or before."""

    def to(self, device: torch.device) -> "StopStrings":
        return StopStrings(self.strings, self.next_state.to(device), self.completes.to(device))

    def step(self, states: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Read one token per row: `[N]`, `[N]` int64 -> the states after it, and whether it completes a string."""
        columns = tokens.clamp(max=self.next_state.shape[1] - 1)  # a head may be wider than the vocabulary
        return self.next_state[states, columns].long(), self.completes[states, columns]


@dataclass(frozen=True)
class Limits:
    """Where a completion ends."""

    max_new_tokens: int
    """A completion that has not ended by then is truncated."""
    end_ids: tuple[int, ...]
    """A completion ends with any of these tokens."""
    stop: StopStrings | None = None
    """A completion also ends with the token that completes one of these strings. The whole token is kept, with any text
    after the string, and its log-probability counts like any other."""
    min_new_tokens: int = 0
    """None of `end_ids` can be drawn among the first `min_new_tokens` tokens (`lmix.functional.without_tokens`), and a
    string that is completed before that does not end the completion."""

    def end_of(self, ids: Sequence[int]) -> int | None:
        """Number of tokens up to the one that ends the completion; None if none does. For samplers that have the tokens
        on the host."""
        state = torch.zeros(1, dtype=torch.long)
        for count, token in enumerate(ids, start=1):
            completes = False
            if self.stop is not None:
                state, completes = self.stop.step(state, torch.tensor([token]))
            if (token in self.end_ids or completes) and self.min_new_tokens <= count <= self.max_new_tokens:
                return count
        return None


def limits_of(
    tokenizer: PreTrainedTokenizerBase,
    end_ids: Sequence[int],
    max_new_tokens: int,
    stop: Sequence[str] = (),
    min_new_tokens: int = 0,
) -> Limits:
    """Limits from settings. The arguments are the fields of `Limits`, with `stop` as strings."""
    strings = stop_strings(tokenizer, tuple(stop)) if stop else None
    return Limits(max_new_tokens, tuple(end_ids), strings, min_new_tokens)


def check_limits(where: str, max_new_tokens: int | None, stop: Sequence[str], min_new_tokens: int = 0) -> None:
    """Raise ValueError if settings are not valid limits. `where` goes before their names in the message."""
    if isinstance(stop, str) or not all(stop):
        raise ValueError(f"{where}stop must be a list of non-empty strings, not {stop!r}")
    if min_new_tokens < 0 or (max_new_tokens is not None and min_new_tokens > max_new_tokens):
        raise ValueError(
            f"{where}min_new_tokens must lie between 0 and {where}max_new_tokens {max_new_tokens}, not {min_new_tokens}"
        )


@lru_cache(maxsize=4)
def stop_strings(tokenizer: PreTrainedTokenizerBase, strings: tuple[str, ...]) -> StopStrings:
    """The automaton of some strings over a tokenizer's tokens."""
    next_byte, completes_byte = byte_automaton([string.encode() for string in strings])
    texts = [*token_bytes(tokenizer), b""]
    order = sorted(range(len(texts)), key=lambda token: -len(texts[token]))  # longest first: a prefix has a next byte
    state_AV = torch.arange(len(next_byte))[:, None].repeat(1, len(texts))
    completes_AV = torch.zeros(state_AV.shape, dtype=torch.bool)
    for place in range(len(texts[order[0]])):
        read = [texts[token][place] for token in order if len(texts[token]) > place]
        bytes_n, states_An = torch.tensor(read), state_AV[:, : len(read)].clone()
        completes_AV[:, : len(read)] |= completes_byte[states_An, bytes_n]
        state_AV[:, : len(read)] = next_byte[states_An, bytes_n]
    back = torch.tensor(order).argsort()
    return StopStrings(strings, state_AV[:, back].to(torch.int16), completes_AV[:, back])


def byte_automaton(strings: Sequence[bytes]) -> tuple[Tensor, Tensor]:
    """The automaton over bytes.

    Returns:
        `[A, 256]` each: the next state (int64), and whether a string ends with that byte (bool).
    """
    # a state is the longest suffix of the text that is a proper prefix of some string
    prefixes = sorted({string[:length] for string in strings for length in range(len(string))}, key=len)
    number = {prefix: state for state, prefix in enumerate(prefixes)}
    next_state = torch.zeros(len(prefixes), 256, dtype=torch.long)
    completes = torch.zeros(len(prefixes), 256, dtype=torch.bool)
    for state, prefix in enumerate(prefixes):
        for byte in range(256):
            text = prefix + bytes([byte])
            next_state[state, byte] = next(number[end] for i in range(len(text) + 1) if (end := text[i:]) in number)
            completes[state, byte] = any(text.endswith(string) for string in strings)
    return next_state, completes
