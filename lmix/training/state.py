"""What a checkpoint must hold to be this run's."""

from collections.abc import Mapping

import torch
from torch import Tensor


def check_adapter_state(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Compare adapters' names and shapes, and see that values are finite.

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
