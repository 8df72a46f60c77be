"""Where each stream lives, by its path: the backbone itself, an adapter on the backbone, or another model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lmix.model.adapters import CONFIG, AdapterConfig, check_adapter
from lmix.model.backbone import BackboneConfig, compute_dtype
from lmix.model.frozen import free_memory
from lmix.model.mixture import POLICY, REFERENCE
from lmix.model.size import count_weights, weight_bytes
from lmix.model.sources import load_config, resolve
from lmix.model.tokenizer import load_tokenizer

GB = 1e9


@dataclass(frozen=True)
class Placed:
    """A model that is loaded once, and the streams that live on it."""

    backbone: BackboneConfig
    adapters: dict[str, str | None]
    """Stream -> its peft folder, or None for the model itself."""


def place_streams(backbone: BackboneConfig, adapters: AdapterConfig) -> list[Placed]:
    """The models that these settings need, the policy's first. Only checks which paths exist; reads no file.

    Adapters and `base` live on `backbone.path`. A policy that starts from a whole model is a new adapter on that model,
    which is loaded as `backbone` says. Other whole models are quantised as `adapters.frozen_quantization` says.

    Raises:
        ValueError: a folder with both an adapter and a model.
    """
    placed: dict[str, Placed] = {}
    for stream, path in adapters.paths().items():
        whole = path is not None and is_model(field_of(stream), path)
        where = path if whole and path is not None else backbone.path
        held = replace(backbone, path=where)
        if placed:  # the policy's model comes first
            held = replace(held, quantization=adapters.frozen_quantization, activation_checkpointing=False)
        placed.setdefault(identity(where), Placed(held, {})).adapters[stream] = None if whole else path
    return list(placed.values())


def model_paths(backbone: BackboneConfig, adapters: AdapterConfig) -> list[str]:
    """The paths of all models that these settings need, the policy's first."""
    return [placed.backbone.path for placed in place_streams(backbone, adapters)]


def field_of(stream: str) -> str:
    """The setting that says where a stream comes from."""
    if stream in (POLICY, REFERENCE):
        return f"adapters.{stream}"
    return f"adapters.experts[{int(stream.removeprefix('expert_')) - 1}]"


def is_model(field: str, path: str) -> bool:
    """Whether a path names a whole model (a folder with a config.json, a .gguf file or a hub id) and not an adapter.

    Raises:
        ValueError: a folder with both an adapter and a model, or a file that is not a .gguf file.
    """
    resolved = resolve(path)
    local = Path(resolved).expanduser()
    if local.is_file() and local.suffix != ".gguf":
        raise ValueError(
            f"{field} {path!r} is a file: give the folder of an adapter (with {CONFIG}) or of a model, or a .gguf file"
        )
    if not local.is_dir():
        return local.suffix == ".gguf" or is_hub_id(resolved)
    model, adapter = (local / "config.json").is_file(), (local / CONFIG).is_file()
    if model and adapter:
        raise ValueError(
            f"{field} {path!r} contains both an adapter ({CONFIG}) and a model (config.json): give a folder with only "
            "one of them"
        )
    return model


def is_hub_id(path: str) -> bool:
    """Whether a path that does not exist locally has the form `owner/name`."""
    return not (path.startswith((".", "~", "/")) or path.count("/") != 1)


def identity(path: str) -> str:
    """A canonical form of a path: two spellings of one location give the same."""
    resolved = resolve(path)
    local = Path(resolved).expanduser()
    return str(local.resolve()) if local.exists() else resolved


def check_placed(tokenizer: str, placed: Sequence[Placed], device: torch.device | str) -> None:
    """Check that models and adapters fit each other and the device, before weights of a model are read.

    Args:
        tokenizer: path of the model whose tokenizer encodes the prompts.
        placed: see `place_streams`.
        device: where the models will be loaded.

    Raises:
        ValueError: they do not fit; the message is one line.
    """
    for each in placed:
        for path in {path for path in each.adapters.values() if path is not None}:
            check_adapter(path, each.backbone.path)
    whole = {
        stream: each
        for each in placed
        for stream in each.adapters
        if identity(each.backbone.path) != identity(tokenizer)
    }
    for stream, each in whole.items():
        check_tokens(field_of(stream), each.backbone.path, tokenizer)
    if whole:
        check_room(placed, torch.device(device))


def check_tokens(field: str, path: str, tokenizer: str) -> None:
    """Raise ValueError unless a model has all tokens of the tokenizer, with the same ids. It may have more."""
    try:
        rows = load_config(path).vocab_size
        theirs = load_tokenizer(path).get_vocab()
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from error
    own = sorted(load_tokenizer(tokenizer).get_vocab().items(), key=lambda pair: pair[1])
    for token, number in own:
        if (found := theirs.get(token)) != number:
            there = "is missing" if found is None else f"is {found}"
            raise ValueError(
                f"{field} {path!r} has another vocabulary than {tokenizer!r}: {token!r} is {number} there and {there} "
                "here, and only models with the same ids can be mixed"
            )
    if own[-1][1] >= rows:
        raise ValueError(
            f"{field} {path!r} has {rows} embeddings, too few for the {own[-1][1] + 1} tokens of {tokenizer!r}"
        )


def check_room(placed: Sequence[Placed], device: torch.device) -> None:
    """Raise ValueError if the models' weights need more memory than a device has free."""
    needs = {each.backbone.path: held_bytes(each.backbone, device) for each in placed}
    free = free_memory(device)
    if sum(needs.values()) > free:
        each = ", ".join(f"{path} {size / GB:.3g}" for path, size in needs.items())
        raise ValueError(
            f"the models' weights need {sum(needs.values()) / GB:.3g} GB ({each}), but {device} has {free / GB:.3g} GB "
            "free: choose smaller models, or set adapters.frozen_quantization and backbone.quantization to nf4"
        )


def held_bytes(backbone: BackboneConfig, device: torch.device | str) -> float:
    """Bytes of a model's weights on a device, from its configuration alone."""
    linear, other, _ = count_weights(load_config(backbone.path))
    width = compute_dtype(backbone.dtype, device).itemsize
    return weight_bytes(linear, other, width, backbone.quantization == "nf4", backbone.double_quantization)
