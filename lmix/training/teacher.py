"""The base of modules whose policy learns from a teacher's distributions instead of rewards."""

from typing import Any

from lmix.training.grpo import GRPOModule
from lmix.training.objectives import Distillation


class TeacherModule(GRPOModule):
    """A policy that learns a teacher's distribution at each token of its own completions. Arguments as in `GRPOModule`.

    Raises:
        ValueError: `sampling.resample_dead` is set. Every completion has a divergence, so no group is dead.
    """

    objective: Distillation
    default_objective = Distillation
    has_teacher = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.sampling.resample_dead:
            raise ValueError(
                f"sampling.resample_dead must be 0 for distillation, not {self.sampling.resample_dead}: no group "
                "is dead, because rewards are not part of the loss"
            )
