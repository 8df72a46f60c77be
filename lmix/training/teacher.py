"""What modules share whose policy learns from a teacher's distributions, and not from rewards."""

from typing import Any

from lmix.training.grpo import GRPOModule
from lmix.training.objectives import Distillation


class TeacherModule(GRPOModule):
    """A policy that moves towards a teacher at each token of its own completions. Arguments as of `GRPOModule`.

    Raises:
        ValueError: dead groups are to be replaced: by a divergence every completion teaches.
    """

    objective: Distillation
    default_objective = Distillation
    has_teacher = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.sampling.resample_dead:
            raise ValueError(
                f"sampling.resample_dead must be 0 for distillation, not {self.sampling.resample_dead}: groups of "
                "equal rewards teach as much as others"
            )
