"""Numbers that are not finite: which rollouts they came from, and a report of these."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lmix.files import json_lines, write_lines
from lmix.rollout.types import Rollout

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NonFinite:
    """A rollout that gave NaN or Inf."""

    rollout: Rollout
    cause: str
    """Where it was seen."""


def nonfinite_rollouts(rollouts: Sequence[Rollout]) -> list[NonFinite]:
    """Rollouts that were drawn from logits with NaN or Inf: then the drawn token's log-probability is not finite."""
    nonfinite = []
    for rollout in rollouts:
        bad = (~torch.isfinite(rollout.log_probs)).nonzero()
        if len(bad):
            nonfinite.append(NonFinite(rollout, f"logits of completion token {int(bad[0])} as it was drawn"))
    return nonfinite


def warn_of_gap(k3: float, bound: float, step: int) -> None:
    """Say where the sampler draws from another policy than is trained.

    Args:
        k3: the step's mean over tokens of train/sampler_gap_k3.
        bound: sampling.gap_warning.
        step: outer step.
    """
    if k3 > bound:
        log.warning(
            "step %d: KL(sampler || trainer) is about %.3g a token, above sampling.gap_warning %g: the sampler rounds "
            "otherwise than the trainer, or has other weights; objective.sampler_weight_cap=2 corrects for rounding",
            step,
            k3,
            bound,
        )


def write_report(path: Path, step: int, nonfinite: Sequence[NonFinite], decode: Callable[[Sequence[int]], str]) -> None:
    """Write a jsonl line for each rollout, with all that it takes to score it again; NaN and Inf as null.

    Args:
        decode: token ids -> text.
    """
    rows = [
        {
            "step": step,
            "cause": cause,
            "prompt": decode(rollout.prompt.ids),
            "completion": decode(rollout.completion_ids),
            "sample": rollout.sample,
            "prompt_ids": rollout.prompt.ids,
            "completion_ids": rollout.completion_ids,
            "log_probs": [p if math.isfinite(p) else None for p in rollout.log_probs.tolist()],
        }
        for rollout, cause in ((bad.rollout, bad.cause) for bad in nonfinite)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_lines(path, json_lines(rows))
