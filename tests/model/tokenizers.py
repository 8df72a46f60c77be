"""Small tokenizers, written as the folders of a model have them."""

import json
import shutil
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from lmix.model.sources import resolve

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
CORPUS = ["Tom has 47 eggs and buys 2023 more: 47 + 2023 = 2070.", "So the answer is \\boxed{2070}.\n\n  end"] * 4


def byte_level(digits: int = 1) -> Tokenizer:
    """Byte-level BPE that splits numbers into groups of so many digits."""
    tokenizer = Tokenizer(models.BPE())
    numbers = pre_tokenizers.Split(Regex(rf"\d{{1,{digits}}}"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([numbers, pre_tokenizers.ByteLevel(add_prefix_space=False)])  # pyright: ignore
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=MARKS)
    )  # pyright: ignore
    return tokenizer


def write_tokenizer(folder: Path, tokenizer: Tokenizer, model_type: str = "llama", **config: Any) -> str:
    """The folder of a model that has only its configuration and its tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "<|endoftext|>", "pad_token": "<|pad|>", **config}
    config = {name: value for name, value in config.items() if value is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, "vocab_size": 512}))
    return str(folder)


def closing_with(token: str, begin: str | None = None) -> Any:
    """A post-processor that closes each text with a token."""
    ids = {name: MARKS.index(name) for name in (token, begin) if name}
    start = f"{begin} " if begin else ""
    return processors.TemplateProcessing(
        single=f"{start}$A {token}", pair=f"{start}$A {token} $B {token}", special_tokens=list(ids.items())
    )


def copy_of_embedded(folder: Path) -> Path:
    """The embedded model as a folder of the user's own."""
    return Path(shutil.copytree(resolve("lmix:tiny-arithmetic"), folder))
