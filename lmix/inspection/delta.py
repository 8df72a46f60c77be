"""The command `delta`: extract a LoRA adapter from a fully fine-tuned checkpoint and its base model."""

import math
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from lmix.functional import low_rank_factors
from lmix.model.adapters import CONFIG, AdapterConfig, add_adapters, lora_layers, save_adapter
from lmix.model.backbone import BackboneConfig, load_backbone
from lmix.model.mixture import POLICY
from lmix.model.sources import load_config
from lmix.model.streams import StreamRouter


def delta(full: str, base: str, out: str, rank: int = 16) -> dict[str, float]:
    """Write the difference of two models as a LoRA, by singular value decomposition of the difference of each layer.

    Only linear layers are covered. Embeddings, head, norms and biases stay as in the base. Both models are held in main
    memory in float32, which takes 8 bytes per weight together.

    Args:
        full: the fine-tuned checkpoint: folder, hub id or .gguf file.
        base: the model that it was fine-tuned from.
        out: folder for the adapter, in peft's layout. Use it as adapters.reference with backbone.path=BASE.
        rank: rank of the LoRA. The approximation error is printed; raise the rank if it is too large.

    Returns:
        `error`: for the linear layers, the norm of the approximation error divided by the norm of the difference.
        `others`: the norm of the difference in all other weights divided by the norm of the whole difference.

    Raises:
        ValueError: a model can't be read, the models have different shapes or do not differ, or the rank is below 1.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, not {rank}")
    if Path(out).exists() and not (Path(out) / CONFIG).is_file():
        raise ValueError(f"out {out!r} exists and is not an adapter folder: choose another path")
    check_alike(full, base)
    base_model, full_model = (load_backbone(BackboneConfig(path, "none", dtype="float32")) for path in (base, full))
    tuned = dict(full_model.named_parameters(remove_duplicate=False))
    whole, elsewhere = squared_differences(base_model, tuned)
    if not whole:
        raise ValueError(f"full {full!r} has the same weights as base {base!r}: the models do not differ")
    peft_model: Any = add_adapters(
        base_model, AdapterConfig(rank=rank, lora_alpha=rank), {POLICY: None}, StreamRouter()
    )
    left = 0.0
    for name, layer in lora_layers(peft_model):
        difference = tuned[f"{name}.weight"].detach() - layer.base_layer.weight
        b, a = low_rank_factors(difference, rank)
        layer.lora_B[POLICY].weight.data.copy_(b)
        layer.lora_A[POLICY].weight.data.copy_(a)
        left += float((difference - b @ a).double().square().sum())
    save_adapter(peft_model, POLICY, Path(out))
    errors = {
        "error": math.sqrt(left / (whole - elsewhere)) if whole > elsewhere else 0.0,
        "others": math.sqrt(elsewhere / whole),
    }
    print(
        f"{out}: rank {rank}: relative error {errors['error']:.3g} on the linear layers; a fraction "
        f"{errors['others']:.3g} of the difference's norm is in weights that a LoRA does not cover"
    )
    return errors


def check_alike(full: str, base: str) -> None:
    """Raise ValueError unless two models' configurations have the same sizes. Called before weights are read."""
    mine, theirs = load_config(full), load_config(base)
    for name in ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers"):
        if getattr(mine, name, None) != getattr(theirs, name, None):
            raise ValueError(
                f"full {full!r} was not fine-tuned from base {base!r}: {name} is {getattr(mine, name, None)}, but "
                f"{getattr(theirs, name, None)} in the base"
            )


def squared_differences(base: PreTrainedModel, tuned: dict[str, nn.Parameter]) -> tuple[float, float]:
    """Squared norms of the difference: of all weights, and of the weights outside the decoder's linear layers.

    If the vocabulary sizes differ, only the rows that both models have are compared.
    """
    head: Any = base.get_output_embeddings()
    linear = {
        f"{name}.weight" for name, layer in base.named_modules() if isinstance(layer, nn.Linear) and layer is not head
    }
    whole = elsewhere = 0.0
    for name, parameter in base.named_parameters():
        rows = min(len(parameter), len(tuned[name]))
        square = float((tuned[name][:rows] - parameter[:rows]).detach().double().square().sum())
        whole += square
        elsewhere += 0.0 if name in linear else square
    return whole, elsewhere
