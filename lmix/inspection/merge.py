"""The command `merge`: average adapters in weight space, into one adapter or a full checkpoint."""

from pathlib import Path
from typing import Any, Literal

import torch

from lmix.errors import one_line_errors
from lmix.files import whole_folder
from lmix.model.adapters import AdapterConfig, check_adapter, write_adapter
from lmix.model.backbone import BackboneConfig, load_backbone
from lmix.model.end_tokens import end_tokens
from lmix.model.merging import Merged, fold, merge_adapters
from lmix.model.mixture import mixture_of
from lmix.model.origin import Origin, read_origin
from lmix.model.placement import field_of, is_model
from lmix.model.prequantized import quantization_method
from lmix.model.sources import load_config
from lmix.model.tokenizer import load_tokenizer

DType = Literal["float32", "bfloat16", "float16"]


def merge(
    base: str,
    policy: str,
    out: str,
    reference: str | None = None,
    experts: list[str] = [],  # noqa: B006  # never changed
    alpha: float | None = None,
    weights: list[float] | None = None,
    rank: int | None = None,
    full: bool = False,
    dtype: DType | None = None,
) -> dict[str, Any]:
    """Average a mixture's adapters in weight space, which gives one model with the cost of a single stream.

    The result is not the mixture, which averages logits instead of weights. The average of two LoRAs is a LoRA whose
    rank is the sum of their ranks. An adapter adds nothing to a layer that it does not have. Writes an adapter in
    peft's layout, or with `full` a checkpoint in transformers' layout with the average added to the base's weights.

    Args:
        base: the model that the adapters were trained on: folder, hub id, .gguf file or lmix:NAME.
        policy: folder of the policy's adapter. Given without a reference and with `full`, it is added to the base.
        out: folder to write into.
        reference: folder of the reference's adapter, or `base`; null for the policy alone.
        experts: folders of additional adapters, in the same form as `reference`.
        alpha: weight of the reference, in [0, 1]; null uses 0.5.
        weights: weights of the policy, the reference and each expert, instead of alpha.
        rank: reduce the average to this rank by singular value decomposition, and print the error; null keeps it exact.
        full: write a full checkpoint with tokenizer. This holds the base's weights in float32, 4 bytes per weight.
        dtype: data type of the full checkpoint's weights; null uses the base's own.

    Returns:
        `rank` of the average, and `error`: the norm of the error of reducing the rank divided by the norm of the
        average.

    Raises:
        ValueError: an adapter does not match the base, the rank is above the sum of the adapters' ranks, or a full
            model is given instead of an adapter.
    """
    adapters = AdapterConfig(reference or "base", policy, list(experts))
    if reference is None and (alpha is not None or weights is not None or experts):
        raise ValueError("reference is null, but alpha, weights and experts need one: give its adapter, or base")
    if dtype is not None and not full:
        raise ValueError(f"dtype {dtype} applies only to a full checkpoint: set full to true or remove dtype")
    chosen = 0.0 if reference is None else 0.5 if alpha is None else alpha
    mixture = mixture_of(chosen, "logits", weights, adapters.streams)
    streams = adapters.paths()
    for stream, path in streams.items():
        if path is not None and is_model(field_of(stream), path):
            field = field_of(stream).removeprefix("adapters.")
            raise ValueError(f"{field} {path!r} is a whole model: turn it into an adapter with lmix delta")
    if full:
        check_plain(base)
    paths = {stream: path for stream, path in streams.items() if path is not None}
    if not paths:
        raise ValueError("policy and reference are the base itself: give the folder of an adapter")
    folder = Path(out)
    check_out(folder, full)
    for path in paths.values():
        check_adapter(path, base)
    by_name = mixture.by_name()
    merged = merge_adapters(paths, [by_name[stream] for stream in paths], load_config(base), rank)
    used = {name: weight for name, weight in by_name.items() if weight}
    origin = Origin(
        "merged",
        base,
        {name: streams[name] for name in used},
        used,
        {"rank": merged.rank, "error": merged.error, "full": full},
    )
    if full:
        write_full(base, merged, folder, origin, dtype)
    else:
        config = merged.config
        config.base_model_name_or_path = base
        write_adapter(config, merged.peft_weights(), folder, origin)
    print(f"{out}: {origin}; rank {merged.rank}: relative error {merged.error:.3g}")
    return {"rank": merged.rank, "error": merged.error}


def check_out(folder: Path, full: bool) -> None:
    """Raise ValueError if the folder exists, unless merge has written it with the same value of `full`."""
    origin = read_origin(folder)
    if folder.exists() and (origin is None or origin.way != "merged" or origin.details.get("full") != full):
        kind = "a full checkpoint" if full else "an adapter"
        raise ValueError(f"out {str(folder)!r} exists and is not {kind} written by merge: choose another path")


def check_plain(base: str) -> None:
    """Raise ValueError if the base's weights are quantised, so that no others can be added to them."""
    method = "its .gguf format" if base.endswith(".gguf") else quantization_method(load_config(base))
    if method is not None:
        raise ValueError(f"base {base!r} is quantised by {method}: give its unquantised checkpoint or remove full")


def write_full(base: str, merged: Merged, folder: Path, origin: Origin, dtype: DType | None) -> None:
    """Write the base with the average added to its weights, and the tokenizer, in transformers' layout."""
    own = getattr(load_config(base), "dtype", None)
    model = load_backbone(BackboneConfig(base, "none", dtype="float32"))
    fold(model, merged.layers)
    tokenizer = load_tokenizer(base)
    settings: Any = model.generation_config
    if settings is not None:
        settings.eos_token_id = end_tokens(model, tokenizer)
    kept = getattr(torch, dtype) if dtype else own or torch.float32
    with whole_folder(folder) as part:
        with one_line_errors(f"{str(folder)!r} can't be written"):
            model.to(kept).save_pretrained(part)  # pyright: ignore[reportArgumentType]
            tokenizer.save_pretrained(part)
        origin.write(part)
