"""Where a backbone's files are, and its tokenizer: all that is cheap enough to check before weights are read."""

import os
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

if TYPE_CHECKING:
    from lmix.model.mixed_policy import MixedPolicy

EMBEDDED = "lmix:"
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")


def resolve(path: str) -> str:
    """Turn `lmix:NAME` into the folder of an embedded asset; leave hub ids, folders and files alone.

    Raises:
        ValueError: no asset of that name.
    """
    if not path.startswith(EMBEDDED):
        return path
    folder = Path(str(files("lmix"))) / "assets" / path.removeprefix(EMBEDDED)
    if not folder.is_dir():
        names = sorted(p.name for p in folder.parent.iterdir() if p.is_dir())
        raise ValueError(f"no embedded asset {path!r}: lmix carries {', '.join(EMBEDDED + n for n in names)}")
    return str(folder)


def trusts_code() -> bool:
    """Whether the user lets models bring Python code of their own: LMIX_TRUST_REMOTE_CODE=1."""
    return os.environ.get("LMIX_TRUST_REMOTE_CODE") == "1"


def hub_arguments(path: str) -> tuple[str, dict[str, Any]]:
    """A backbone's path as `from_pretrained` wants it: (id or folder, keyword arguments).

    Raises:
        ValueError: a local path that holds no model.
    """
    resolved = resolve(path)
    local = Path(resolved).expanduser()
    if local.suffix == ".gguf":
        if not local.is_file():
            raise ValueError(f"backbone {path!r} is no file: give a .gguf file that exists")
        return str(local.parent), {"gguf_file": local.name, "trust_remote_code": False}
    if local.is_dir():
        if not (local / "config.json").is_file():
            raise ValueError(f"backbone {path!r} holds no model: the folder has no config.json")
        return str(local), {"trust_remote_code": trusts_code()}
    if local.is_absolute() or resolved.startswith((".", "~")) or resolved.count("/") != 1:
        raise ValueError(f"backbone {path!r} is no folder, .gguf file or hub id (such as Qwen/Qwen2.5-1.5B-Instruct)")
    return resolved, {"trust_remote_code": trusts_code()}


def load_config(path: str) -> PretrainedConfig:
    """The backbone's configuration. Raises ValueError where there is none, or where it is not that of a text model."""
    where, arguments = hub_arguments(path)
    try:
        config = AutoConfig.from_pretrained(where, **arguments)
    except (OSError, ValueError) as error:
        raise ValueError(f"backbone {path!r} can't be read: {reason(error)}") from error
    if config.get_text_config() is not config:
        raise ValueError(
            f"backbone {path!r} is of type {config.model_type!r}, a text model inside a larger one: lmix takes "
            "text-only causal models"
        )
    return config


def check_places(path: str, longest_prompt: int, max_new_tokens: int) -> None:
    """Raise ValueError where a prompt and its completion can be more tokens than the backbone has places."""
    places = getattr(load_config(path), "max_position_embeddings", None)
    if places is not None and longest_prompt + max_new_tokens > places:
        raise ValueError(
            f"max_new_tokens {max_new_tokens} after a prompt of {longest_prompt} tokens is more than the {places} "
            f"places of backbone {path!r}: lower it, or max_prompt_tokens"
        )


@lru_cache(maxsize=4)
def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The backbone's tokenizer. Raises ValueError where there is none, or where it has no end-of-sequence token."""
    where, arguments = hub_arguments(path)
    if (
        Path(where).is_dir()
        and "gguf_file" not in arguments
        and not any((Path(where) / name).is_file() for name in _VOCABULARIES)
    ):
        raise ValueError(f"tokenizer of backbone {path!r} is missing: put its files (tokenizer.json) into the folder")
    # AutoTokenizer gives a Qwen2 model Qwen2's own tokenizer, even where the folder says that it has another
    loader = PreTrainedTokenizerFast if path.startswith(EMBEDDED) else AutoTokenizer
    try:
        tokenizer = loader.from_pretrained(where, **arguments)  # pyright: ignore[reportArgumentType]
    except (OSError, ValueError) as error:
        raise ValueError(f"tokenizer of backbone {path!r} can't be read: {reason(error)}") from error
    if tokenizer.eos_token_id is None:
        raise ValueError(f"tokenizer of backbone {path!r} has no end-of-sequence token: set eos_token in its config")
    return tokenizer


def end_tokens(policy: "MixedPolicy", tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end a completion: the tokenizer's, and those of the model's generation settings."""
    ends: set[Any] = {tokenizer.eos_token_id}  # pyright: ignore[reportUnhashable]
    generation = getattr(policy.backbone, "generation_config", None)
    configured = getattr(generation, "eos_token_id", None)
    ends |= set(configured if isinstance(configured, list | tuple) else [configured])
    return sorted(int(token) for token in ends if token is not None)  # pyright: ignore[reportArgumentType]


def reason(error: Exception) -> str:
    """Why a model's files can't be read, with the way out where they bring code of their own."""
    if "trust_remote_code" in str(error):
        return "it brings Python code of its own; set LMIX_TRUST_REMOTE_CODE=1 to run that, if you trust it"
    return first_line(error)


def first_line(error: Exception) -> str:
    """An exception's message cut to its first line, for errors that must be one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
