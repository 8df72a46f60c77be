"""Detection of NaN and Inf, and a report of the rollouts that caused them."""

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
    """A rollout that produced NaN or Inf."""

    rollout: Rollout
    cause: str
    """Where the NaN or Inf was seen, for messages."""


def nonfinite_rollouts(rollouts: Sequence[Rollout]) -> list[NonFinite]:
    """Rollouts sampled from logits with NaN or Inf, recognised by a token log-probability that is not finite."""
    nonfinite = []
    for rollout in rollouts:
        bad = (~torch.isfinite(rollout.log_probs)).nonzero()
        if len(bad):
            nonfinite.append(NonFinite(rollout, f"logits of completion token {int(bad[0])} as it was drawn"))
    return nonfinite


def warn_of_gap(k3: float, bound: float, step: int) -> None:
    """Warn if the sampler's distribution differs too much from the trainer's.

    Args:
        k3: the step's train/sampler_gap_k3, a mean over tokens.
        bound: sampling.gap_warning.
        step: outer step.
    """
    if k3 > bound:
        log.warning(
            "step %d: KL(sampler || trainer) is about %.3g per token, above sampling.gap_warning %g: the sampler "
            "rounds differently from the trainer, or has different weights; objective.sampler_weight_cap=2 corrects "
            "for rounding",
            step,
            k3,
            bound,
        )


def write_report(path: Path, step: int, nonfinite: Sequence[NonFinite], decode: Callable[[Sequence[int]], str]) -> None:
    """Write a jsonl line for each rollout, with everything needed to score it again. NaN and Inf become null.

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
