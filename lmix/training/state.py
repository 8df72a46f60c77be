"""Checks that a checkpoint is intact and belongs to the run."""

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
"""Keys that `checkpoint["lmix"]` must have."""


def find_checkpoint(path: str) -> str:
    """Find the checkpoint that a path refers to: the .ckpt file itself, or the newest intact one in a run's folder.

    Raises:
        ValueError: the file is not an intact checkpoint of lmix, or the folder contains none.
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
    problem = damaged or ": give a run's folder"
    raise ValueError(f"ckpt_path {path!r} contains no intact checkpoint{problem}")


def check_fresh(folder: Path, ckpt_path: Any, saved: Sequence[Path] = ()) -> None:
    """Check that a run does not mix its checkpoints with another run's.

    Args:
        folder: the folder that the run writes checkpoints to.
        ckpt_path: the checkpoint that the run resumes from, or None.
        saved: checkpoints of this run from an earlier `fit`.

    Raises:
        ValueError: the folder contains other checkpoints and the run does not resume from it.
    """
    others = {path for path in folder.glob("*.ckpt") if not path.is_symlink()} - set(saved)
    if others and (ckpt_path is None or Path(ckpt_path).resolve().parent != folder.resolve()):
        raise ValueError(
            f"{folder.parent} already contains checkpoints of another run: resume with --ckpt_path={folder.parent}, or "
            "choose another folder"
        )


def named_step(path: Path) -> int | None:
    """The step in a checkpoint's file name, or None."""
    match = re.fullmatch(r"step=(\d+)\.ckpt", path.name)
    return None if match is None else int(match[1])


def check_checkpoint(path: str) -> None:
    """Check that a file is an intact checkpoint of lmix, before any model is loaded.

    Raises:
        ValueError: it is not; the message is one line.
    """
    where = f"ckpt_path {path!r}"
    if not Path(path).is_file():
        raise ValueError(f"{where} does not exist: give a .ckpt of a run's checkpoints folder, or the run's folder")
    try:
        with zipfile.ZipFile(path) as archive:
            if (part := archive.testzip()) is not None:  # torch.load does not verify checksums
                raise ValueError(f"the checksum of {part} is wrong")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zipfile and torch raise their own classes
        raise ValueError(f"{where} is damaged or not a checkpoint: give another .ckpt, or the run's folder") from error
    if not isinstance(checkpoint, dict) or "lmix" not in checkpoint:
        raise ValueError(f"{where} was not written by lmix: give a .ckpt of a run's checkpoints folder")
    if not (isinstance(checkpoint["lmix"], dict) and set(checkpoint["lmix"]) >= ORIGIN):
        raise ValueError(
            f"{where} was written by another version of lmix: resume with that version, or start a new run"
        )
    if named_step(Path(path)) not in (None, checkpoint.get("global_step")):
        raise ValueError(
            f"{where} contains step {checkpoint.get('global_step')}, but its name gives another step: rename it"
        )


def check_origin(
    saved: Mapping[str, Any],
    backbone: str,
    fingerprint: str,
    others: Mapping[str, str],
    scaling: Mapping[str, Sequence[float]],
) -> None:
    """Check that a checkpoint's adapters were trained on this backbone, with the same other models and scales.

    Args:
        saved: `checkpoint["lmix"]`.
        backbone: path of the policy's backbone.
        fingerprint: fingerprint of that backbone.
        others: fingerprints of the models of streams that have their own, by stream.
        scaling: LoRA scales of the adapters.

    Raises:
        ValueError: they differ.
    """
    if differ(saved["fingerprint"], fingerprint):
        raise ValueError(
            f"the checkpoint was trained on backbone {saved['backbone']}, which differs from backbone.path {backbone}: "
            "use the same backbone as in training"
        )
    if saved["backbone"] != backbone:
        log.warning("backbone.path is %s; the checkpoint was trained on %s", backbone, saved["backbone"])
    before = saved.get("others", {})  # missing in older checkpoints, whose streams shared one backbone
    for stream in sorted({*before, *others}):
        if stream not in before or stream not in others or differ(before[stream], others[stream]):
            what = "a different model" if stream in before else "no model of its own"
            raise ValueError(
                f"the checkpoint was trained with {what} as {field_of(stream)}: use the same setting as in training"
            )
    if saved["scaling"] != scaling:
        raise ValueError(
            f"the checkpoint's adapters have LoRA scales {saved['scaling']}, but the current settings give "
            f"{dict(scaling)}: use the same adapters.lora_alpha and adapter folders as in training"
        )


def differ(saved: str, own: str) -> bool:
    """Whether two fingerprints belong to different models.

    Only parts that both have are compared: models that were not loaded from files, and older checkpoints, lack some.
    """
    return any(a != b for a, b in zip(saved.split("-"), own.split("-"), strict=False))


def check_adapter_state(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Check that adapters match in names and shapes, that values are finite, and that frozen adapters are unchanged.

    Raises:
        ValueError: they do not match; the message names the first difference in one line.
    """
    if differing := sorted(set(found) ^ set(expected)):
        where = "is missing from the checkpoint" if differing[0] in expected else "is not in this model"
        count = f"{len(differing)} weights differ in this way"
        raise ValueError(f"the checkpoint does not fit this model: {differing[0]} {where} ({count})")
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape:
            shapes = f"{list(found[name].shape)}, must be {list(tensor.shape)}"
            raise ValueError(f"the checkpoint does not fit this model: {name} is {shapes}")
        if not torch.isfinite(found[name]).all():
            raise ValueError(f"the checkpoint is damaged: {name} contains NaN or Inf; use an earlier one")
        if ".policy." not in name and not torch.equal(found[name].to(tensor), tensor):
            raise ValueError(
                f"the checkpoint was trained with another frozen adapter ({name} differs): use the same "
                "adapters.reference and adapters.experts as in training"
            )
