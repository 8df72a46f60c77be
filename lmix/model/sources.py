"""Where a model's files are, and its configuration: what can be checked cheaply, before weights are read."""

import os
from collections.abc import Iterable
from copy import deepcopy
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from lmix.errors import one_line_errors
from lmix.model.gguf_reader import without_vocabulary

EMBEDDED = "lmix:"
MIXED = "lmix_mixed_policy"
"""`model_type` of the folders that `lmix export` writes."""


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
        raise ValueError(f"no embedded asset {path!r}: lmix includes {', '.join(EMBEDDED + n for n in names)}")
    return str(folder)


def trusts_code() -> bool:
    """Whether the user allows models to run Python code of their own: LMIX_TRUST_REMOTE_CODE=1."""
    return os.environ.get("LMIX_TRUST_REMOTE_CODE") == "1"


def hub_arguments(path: str) -> tuple[str, dict[str, Any]]:
    """A backbone's path as `from_pretrained` takes it: (id or folder, keyword arguments).

    Raises:
        ValueError: a local path that holds no model.
    """
    resolved = resolve(path)
    local = Path(resolved).expanduser()
    if local.suffix == ".gguf":
        if not local.is_file():
            raise ValueError(f"backbone {path!r} does not exist: give the path of a .gguf file")
        return str(local.parent), {"gguf_file": local.name, "trust_remote_code": False}
    if local.is_dir():
        if not (local / "config.json").is_file():
            raise ValueError(f"backbone {path!r} is not a model folder: it has no config.json")
        return str(local), {"trust_remote_code": trusts_code()}
    if local.is_absolute() or resolved.startswith((".", "~")) or resolved.count("/") != 1:
        raise ValueError(
            f"backbone {path!r} is not a folder, a .gguf file or a hub id (such as Qwen/Qwen2.5-1.5B-Instruct)"
        )
    return resolved, {"trust_remote_code": trusts_code()}


def file_stamps(path: str) -> tuple[tuple[str, int, int], ...]:
    """Name, size and modification time of each file of a local model: a cache key that changes with the files."""
    local = Path(resolve(path)).expanduser()
    places = local.iterdir() if local.is_dir() else [local]
    stats = [(place.name, place.stat()) for place in places if place.is_file()]
    return tuple(sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats))


def load_config(path: str) -> PretrainedConfig:
    """The backbone's configuration. Raises ValueError if there is none, or if it is not that of a text model."""
    return deepcopy(_load_config(path, file_stamps(path)))


@lru_cache(maxsize=4)
def _load_config(path: str, _: Any) -> PretrainedConfig:
    where, arguments = hub_arguments(path)
    with one_line_errors(f"backbone {path!r} can't be read"), without_vocabulary():
        config = AutoConfig.from_pretrained(where, **arguments)
    if config.get_text_config() is not config:
        raise ValueError(
            f"backbone {path!r} is of type {config.model_type!r}, a text model inside a larger model: lmix supports "
            "text-only causal models"
        )
    check_causal(path, config)
    return config


def check_causal(path: str, config: PretrainedConfig) -> None:
    """Raise ValueError for an encoder, an encoder-decoder, or a mixed policy that `lmix export` wrote."""
    if config.model_type == MIXED:
        raise ValueError(f"backbone {path!r} is a mixed policy that lmix export wrote: give one of its models")
    names: list[str] = config.architectures or []
    causal = [name for name in names if name.endswith(("ForCausalLM", "LMHeadModel"))]
    own_code = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if config.is_encoder_decoder or (names and not causal and not own_code):
        kind = names[0] if names else config.model_type
        raise ValueError(f"backbone {path!r} is a {kind}, not a causal language model: choose a causal LM")


def count_places(config: PretrainedConfig) -> int | None:
    """The longest sequence of a model, in tokens, with rotary scaling; None if its configuration does not say.

    YaRN and similar methods multiply the length that the model was pretrained with. Some configurations give the result
    as `max_position_embeddings`, others (Qwen's) give the original length.
    """
    places = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    # one dict for all layers, or one for each kind of layer
    for scaling in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
        original, factor = scaling.get("original_max_position_embeddings"), scaling.get("factor")
        if original and factor:
            places = max(places or 0, int(original * factor))
    return places


def room_after(longest_prompt: int, configs: Iterable[PretrainedConfig], most: int) -> int:
    """Tokens that models have room for after a prompt, at most `most`; below 1 if there is none."""
    counts = [count for config in configs if (count := count_places(config)) is not None]
    return min([most, *(count - longest_prompt for count in counts)])


def check_places(path: str, longest_prompt: int, max_new_tokens: int, config: PretrainedConfig | None = None) -> None:
    """Raise ValueError if a prompt with its completion can be longer than the backbone's longest sequence.

    Args:
        config: configuration of a loaded model; None reads that of `path`.
    """
    places = count_places(config or load_config(path))
    if places is not None and longest_prompt + max_new_tokens > places:
        raise ValueError(
            f"max_new_tokens {max_new_tokens} and a prompt of {longest_prompt} tokens exceed the {places} positions of "
            f"backbone {path!r}: lower max_new_tokens or max_prompt_tokens"
        )
