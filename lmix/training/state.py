"""Check that a checkpoint fits the run."""

import logging
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmix.model.placement import field_of

log = logging.getLogger(__name__)

ORIGIN = {"alpha", "initial_alpha", "weights", "backbone", "fingerprint", "scaling"}
"""What `checkpoint["lmix"]` holds."""


def find_checkpoint(path: str) -> str:
    """The checkpoint that a path stands for: a .ckpt itself, or the newest whole one of a run's folder.

    Raises:
        ValueError: it is no whole checkpoint of lmix, or a folder without any.
    """
    folder = Path(path)
    if not folder.is_dir():
        check_checkpoint(path)
        return path
    if (folder / "checkpoints").is_dir():
        folder = folder / "checkpoints"
    damaged = ""
    for candidate in sorted(
        folder.glob("*.ckpt"), key=lambda p: (named_step(p) or -1, p.stat().st_mtime), reverse=True
    ):
        try:
            check_checkpoint(str(candidate))
        except ValueError as error:
            damaged = damaged or f": {error}"
            log.warning("%s; trying the one before it", error)
            continue
        return str(candidate)
    raise ValueError(f"ckpt_path {path!r} is a folder with no intact checkpoint{damaged or ': give that of a run'}")


def check_fresh(folder: Path, ckpt_path: Any, saved: Sequence[Path] = ()) -> None:
    """See that a run does not mix its checkpoints with another's.

    Args:
        folder: where it would write them.
        ckpt_path: what it goes on from, or None.
        saved: its own, of an earlier `fit`.

    Raises:
        ValueError: there are some that it does not go on from.
    """
    others = {path for path in folder.glob("*.ckpt") if not path.is_symlink()} - set(saved)
    if others and (ckpt_path is None or Path(ckpt_path).resolve().parent != folder.resolve()):
        raise ValueError(
            f"{folder.parent} holds checkpoints of a run: go on from there by --ckpt_path, or give another folder"
        )


def named_step(path: Path) -> int | None:
    """The step in a checkpoint's name, where there is one."""
    match = re.fullmatch(r"step=(\d+)\.ckpt", path.name)
    return None if match is None else int(match[1])


def check_checkpoint(path: str) -> None:
    """See that a file is a whole checkpoint of lmix, before any model is loaded.

    Raises:
        ValueError: it is none, in one line.
    """
    where = f"ckpt_path {path!r}"
    if not Path(path).is_file():
        raise ValueError(f"{where} is no file: give a .ckpt of a run's checkpoints folder, or the run's folder")
    try:
        with zipfile.ZipFile(path) as archive:
            if (part := archive.testzip()) is not None:  # torch reads a part without a look at its checksum
                raise ValueError(f"the checksum of {part} is wrong")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle's, zip's and torch's own classes
        raise ValueError(f"{where} is damaged or no checkpoint: give another .ckpt, or the run's folder") from error
    if not isinstance(checkpoint, dict) or "lmix" not in checkpoint:
        raise ValueError(f"{where} was not written by lmix: give a .ckpt of a run's checkpoints folder")
    if not (isinstance(checkpoint["lmix"], dict) and set(checkpoint["lmix"]) >= ORIGIN):
        raise ValueError(f"{where} was written by another version of lmix: resume with that, or start afresh")
    if named_step(Path(path)) not in (None, checkpoint.get("global_step")):
        raise ValueError(f"{where} holds step {checkpoint.get('global_step')}: its name says another: rename it")


def check_origin(
    saved: Mapping[str, Any],
    backbone: str,
    fingerprint: str,
    others: Mapping[str, str],
    scaling: Mapping[str, Sequence[float]],
) -> None:
    """See that a checkpoint's adapters were trained on this backbone, beside these models, and at these scales.

    Args:
        saved: what the checkpoint holds of its origin.
        backbone: the policy's.
        fingerprint: its own.
        others: fingerprints of the models that other streams live on, by stream.
        scaling: of the adapters.

    Raises:
        ValueError: they were not.
    """
    if differ(saved["fingerprint"], fingerprint):
        raise ValueError(
            f"the checkpoint was trained on another backbone ({saved['backbone']}) than backbone.path {backbone}: "
            "give that one"
        )
    if saved["backbone"] != backbone:
        log.warning("backbone.path is %s; the checkpoint was trained on %s", backbone, saved["backbone"])
    before = saved.get("others", {})  # older checkpoints know adapters of one backbone only
    for stream in sorted({*before, *others}):
        if stream not in before or stream not in others or differ(before[stream], others[stream]):
            what = "another model" if stream in before else "no model of its own"
            raise ValueError(f"the checkpoint was trained with {what} as {field_of(stream)}: give it as it was")
    if saved["scaling"] != scaling:
        raise ValueError(
            f"the checkpoint's adapters have the scales {saved['scaling']}, not {dict(scaling)}: give "
            "adapters.lora_alpha and the adapters' folders as they were"
        )


def differ(saved: str, own: str) -> bool:
    """Whether two fingerprints are of different models. A part that only one of them has says nothing: weights that did
    not come from files, or an older checkpoint."""
    return any(a != b for a, b in zip(saved.split("-"), own.split("-"), strict=False))


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
