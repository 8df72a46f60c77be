"""A tokenizer as its files describe it: tokenizer.json decides, not the class that tokenizer_config.json names.

The classes of transformers 5 rebuild a tokenizer from the vocabulary of tokenizer.json and replace the file's
pre-tokenizer and decoder by their own, with no warning (huggingface/transformers#45488, #45920).
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils.hub import cached_file

FILE = "tokenizer.json"
SAMPLES = (
    "Tom has 1234567 eggs; 3.14 + 2023 = 2026.14",
    "  two  spaces,   three\n\n\nlines\t\ttabs \r\n end ",
    "中文数学题：求 x² 的值。日本語と한국어",  # noqa: RUF001
    "def f(x):\n    return {x: x**2}  # doesn't\n",
    "So \\boxed{\\frac{1}{2}} and $x_1 \\le 5$ .",
    "naïve café 😀 ﬁ ①½ Ⅳ",
)
SPECIAL = ("eos_token", "bos_token", "pad_token", "unk_token")


def read_tokenizer(where: str, arguments: dict[str, Any]) -> PreTrainedTokenizerBase:
    """Read a tokenizer. Raises what transformers and tokenizers raise, and ValueError if it differs from its file.

    Args:
        where: hub id or folder.
        arguments: keyword arguments of `from_pretrained`.
    """
    if "gguf_file" in arguments:
        return PreTrainedTokenizerFast.from_pretrained(where, **arguments)
    # None if there is a sentencepiece model, a tekken.json, or vocabulary and merges instead
    file = cached_file(where, FILE, _raise_exceptions_for_missing_entries=False)
    if file is None:
        tokenizer = AutoTokenizer.from_pretrained(where, **arguments)
    else:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(where, **arguments)
        if tokenizer.eos_token is None:
            add_special_tokens_of_class(tokenizer, AutoTokenizer.from_pretrained(where, **arguments))
        tokenizer.clean_up_tokenization_spaces = False  # only the file's decoder may change the text
        check_against_file(tokenizer, file)
    return tokenizer


def add_special_tokens_of_class(tokenizer: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> None:
    """Copy special tokens that only the class defines, if the vocabulary has them."""
    known = tokenizer.get_vocab()
    for name in SPECIAL:
        token = getattr(other, name)
        if getattr(tokenizer, name) is None and token in known:
            setattr(tokenizer, name, token)


def check_against_file(tokenizer: PreTrainedTokenizerBase, file: str | Path) -> None:
    """Compare a loaded tokenizer with its tokenizer.json on a sample of texts, in both directions.

    Raises:
        ValueError: they differ; the one-line message shows the first such text.
    """
    expected = Tokenizer.from_file(str(file))
    expected.no_truncation()
    expected.no_padding()
    template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else ""
    marks = [str(token) for token in tokenizer.added_tokens_decoder.values() if str(token) in template]
    for text in (*SAMPLES, " ".join(f"{mark}user\n42 {mark}" for mark in marks)):
        ids = expected.encode(text, add_special_tokens=False).ids
        own: Any = tokenizer(text, add_special_tokens=False)["input_ids"]
        if own != ids:
            raise ValueError(f"{text!r} is encoded as {own[:8]}..., but {FILE} gives {ids[:8]}...")
        if (out := tokenizer.decode(ids)) != (right := expected.decode(ids, skip_special_tokens=False)):
            raise ValueError(f"{text!r} is decoded as {out!r}, but {FILE} gives {right!r}")


def end_without_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make a tokenizer add no special token (such as end-of-sequence) after a text, because a prompt must stay open.

    Raises:
        ValueError: a post-processor that can't be changed adds the token.
    """
    if getattr(tokenizer, "add_eos_token", False):
        tokenizer.add_eos_token = tokenizer.init_kwargs["add_eos_token"] = False
    if not closes_texts(tokenizer):
        return
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and backend.post_processor is not None:
        state = json.loads(backend.post_processor.__getstate__())
        for part in state.get("processors", [state]):
            for kind in ("single", "pair") if part["type"] == "TemplateProcessing" else ():
                while part[kind] and "SpecialToken" in part[kind][-1]:
                    part[kind].pop()
        empty = processors.Sequence([]) if "processors" in state else processors.TemplateProcessing()
        if type(empty) is type(backend.post_processor):
            empty.__setstate__(json.dumps(state).encode())
            backend.post_processor = empty
    if closes_texts(tokenizer):
        raise ValueError("it appends a special token to each prompt: remove that token from its post_processor")


def closes_texts(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer adds special tokens after a text."""
    open_ids: Any = tokenizer("42", add_special_tokens=False)["input_ids"]
    ids: Any = tokenizer("42")["input_ids"]
    return ids[len(ids) - len(open_ids) :] != open_ids
