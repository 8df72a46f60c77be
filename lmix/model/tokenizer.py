"""The backbone's tokenizer."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from lmix.errors import one_line_errors
from lmix.model.sources import file_stamps, hub_arguments
from lmix.model.tokenizer_file import end_without_token, read_tokenizer

_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The backbone's tokenizer. It follows tokenizer.json, if there is one, and adds no token after a text.

    Raises:
        ValueError: there is none, it differs from tokenizer.json, or it has no end-of-sequence token.
    """
    return _load_tokenizer(path, file_stamps(path))


@lru_cache(maxsize=4)
def _load_tokenizer(path: str, _: Any) -> PreTrainedTokenizerBase:
    where, arguments = hub_arguments(path)
    if (
        Path(where).is_dir()
        and "gguf_file" not in arguments
        and not any((Path(where) / name).is_file() for name in _VOCABULARIES)
    ):
        raise ValueError(f"tokenizer of backbone {path!r} is missing: put its files (tokenizer.json) into the folder")
    with one_line_errors(f"tokenizer of backbone {path!r} can't be used"):
        tokenizer = read_tokenizer(where, arguments)
        end_without_token(tokenizer)
    if tokenizer.eos_token_id is None:
        raise ValueError(f"tokenizer of backbone {path!r} has no end-of-sequence token: set eos_token in its config")
    return tokenizer
