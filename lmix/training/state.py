"""What a checkpoint must hold to be this run's."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

ORIGIN = {"alpha", "initial_alpha", "weights", "backbone", "fingerprint", "scaling"}
"""What `checkpoint["lmix"]` holds."""


def check_checkpoint(path: str) -> None:
    """See that a file is a whole checkpoint of lmix, before any model is loaded.

    Raises:
        ValueError: it is none, in one line.
    """
    where = f"ckpt_path {path!r}"
    if not Path(path).is_file():
        raise ValueError(f"{where} is no file: give a .ckpt of a run's checkpoints folder")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle's, zip's and torch's own classes
        raise ValueError(f"{where} is damaged or no checkpoint: give a .ckpt of a run's checkpoints folder") from error
    if not isinstance(checkpoint, dict) or "lmix" not in checkpoint:
        raise ValueError(f"{where} was not written by lmix: give a .ckpt of a run's checkpoints folder")
    if not set(checkpoint["lmix"]) >= ORIGIN:
        raise ValueError(f"{where} was written by another version of lmix: go on with that one, or start anew")


def check_origin(
    saved: Mapping[str, Any], backbone: str, fingerprint: str, scaling: Mapping[str, Sequence[float]]
) -> None:
    """See that a checkpoint's adapters were trained on this backbone, and at these scales.

    Raises:
        ValueError: they were not.
    """
    if saved["fingerprint"] != fingerprint:
        raise ValueError(
            f"the checkpoint was trained on another backbone ({saved['backbone']}) than backbone.path {backbone}: "
            "give that one"
        )
    if saved["backbone"] != backbone:
        log.warning("backbone.path is %s; the checkpoint was trained on %s", backbone, saved["backbone"])
    if saved["scaling"] != scaling:
        raise ValueError(
            f"the checkpoint's adapters have the scales {saved['scaling']}, not {dict(scaling)}: give "
            "adapters.lora_alpha and the adapters' folders as they were"
        )


def check_adapter_state(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Compare adapters' names and shapes, see that values are finite, and that frozen adapters are the same.

    Raises:
        ValueError: they differ, in one line with the first difference.
    """
    if differing := sorted(set(found) ^ set(expected)):
        where = "is missing in it" if differing[0] in expected else "is unknown here"
        raise ValueError(f"the checkpoint does not fit this model: {differing[0]} {where} ({len(differing)} such)")
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape:
            shapes = f"{list(found[name].shape)}, must be {list(tensor.shape)}"
            raise ValueError(f"the checkpoint does not fit this model: {name} is {shapes}")
        if not torch.isfinite(found[name]).all():
            raise ValueError(f"the checkpoint is damaged: {name} holds NaN or Inf; take an earlier one")
        if ".policy." not in name and not torch.equal(found[name].to(tensor), tensor):
            raise ValueError(
                f"the checkpoint was trained with another frozen adapter ({name} differs): "
                "give adapters.reference and adapters.experts as they were"
            )
