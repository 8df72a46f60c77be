"""The bytes that each token of a vocabulary stands for inside a text."""

from typing import Any

from transformers import PreTrainedTokenizerBase


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> list[bytes]:
    """The bytes that each token adds to a text, by id. A token may be part of a character; joined bytes are UTF-8.

    Args:
        tokenizer: byte-level BPE (Qwen, Llama 3), SentencePiece with byte fallback (Llama 2, Gemma), or any other whose
            tokens can be decoded one by one.
    """
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    decoder = repr(getattr(backend, "decoder", None))
    byte_of = bytes_of_characters() if "ByteLevel" in decoder else {}
    added = {number: token.content.encode() for number, token in tokenizer.added_tokens_decoder.items()}
    # decode after another token, because decoders strip the leading space of a text
    first: Any = tokenizer("a", add_special_tokens=False)["input_ids"]
    before = len(str(tokenizer.decode(first)))

    def as_bytes(token: str, number: int) -> bytes:
        if number in added:
            return added[number]
        if byte_of and all(character in byte_of for character in token):
            return bytes(byte_of[character] for character in token)
        if "ByteFallback" in decoder and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes([int(token[3:5], 16)])
        return str(tokenizer.decode([*first, number]))[before:].encode()

    pieces = [b""] * (max(vocabulary.values()) + 1)
    for token, number in vocabulary.items():
        pieces[number] = as_bytes(token, number)
    return pieces


def bytes_of_characters() -> dict[str, int]:
    """The byte for each character of a byte-level vocabulary: printable characters stand for their own byte, those from
    U+0100 on for the other bytes in order (GPT-2's table, Radford et al., 2019)."""
    seen = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + place): byte for place, byte in enumerate(hidden)}
