"""SDPO: the policy with feedback in its prompt as its own teacher (Huebotter et al., 2026, arXiv 2601.20802)."""

import sys
from collections.abc import Sequence
from dataclasses import replace

import torch
from jsonargparse.typing import lazy_instance
from torch import Tensor

from lmix.model.adapters import AdapterConfig
from lmix.model.backbone import BackboneConfig
from lmix.model.mixture import Mixture
from lmix.model.sources import count_places, load_config
from lmix.rollout.types import Group
from lmix.training.config import OptimizerConfig, SamplingConfig
from lmix.training.distillation import DistillationUpdate
from lmix.training.feedback import FeedbackConfig, contexts
from lmix.training.objectives import Distillation
from lmix.training.teacher import TeacherModule
from lmix.training.update import Update


class SDPOModule(TeacherModule):
    """Self-distillation: the policy learns, on its own completions, from itself with feedback in the prompt.

    The loss is eq. 1 of the SDPO paper, `sum_t KL(pi(. | x, y_<t) || sg pi(. | x, f, y_<t))`, with feedback f. The
    teacher is the trust-region teacher of eq. 11, `q ~ pi_start^(1 - rate) pi^rate`, and both of its factors read the
    feedback. This is logit averaging with the roles of the streams exchanged: the frozen starting point anchors the
    moving policy. Completions without feedback do not count.

    Args:
        backbone: the model to adapt.
        adapters: the policy's starting point, which also anchors the teacher; `reference` and `experts` must be null.
        teacher_rate: weight of the current policy in the teacher, in [0, 1]: 0 is the starting point alone, 1 the
            current policy alone.
        feedback: the feedback that the teacher reads.
        sampling: how completions are sampled.
        rewards: rewards of completions, for logging only. The verifier decides which completions are correct.
        objective: the divergence and how it is averaged.
        optimizer: settings of AdamW.

    Raises:
        ValueError: teacher_rate is outside [0, 1], or a reference or experts are given.
    """

    def __init__(
        self,
        backbone: BackboneConfig = BackboneConfig(),
        adapters: AdapterConfig = AdapterConfig(),
        teacher_rate: float = 0.01,
        feedback: FeedbackConfig = FeedbackConfig(),
        sampling: SamplingConfig = SamplingConfig(),
        rewards: dict[str, float] = {"verifier": 1.0},  # noqa: B006  # never changed
        objective: Distillation = lazy_instance(Distillation),
        optimizer: OptimizerConfig = OptimizerConfig(),
    ) -> None:
        if not 0.0 <= teacher_rate <= 1.0:
            raise ValueError(f"teacher_rate must lie in [0, 1], not {teacher_rate}: the paper uses 0.01")
        if adapters.reference is not None or adapters.experts:
            raise ValueError(
                "adapters.reference and adapters.experts must be null for SDPO: the policy's starting point is the "
                "anchor"
            )
        super().__init__(
            backbone,
            replace(adapters, reference=adapters.policy),
            alpha=0.0,
            sampling=sampling,
            rewards=rewards,
            objective=objective,
            optimizer=optimizer,
        )
        self.teacher = replace(Mixture.at(1.0 - teacher_rate), temperature=sampling.temperature)
        self.feedback = feedback

    def update(self, groups: Sequence[Group], advantages_PG: Tensor) -> Update:
        places = count_places(load_config(self.model_path)) or sys.maxsize
        told_PG = [contexts(group, self.task, self.tokenizer, self.feedback, places) for group in groups]
        # completions without feedback are left out of the mean and get no pass
        counted = [
            replace(
                group,
                rollouts=[
                    rollout if context else replace(rollout, mask=torch.zeros(len(rollout.completion_ids)).bool())
                    for rollout, context in zip(group.rollouts, told, strict=True)
                ],
            )
            for group, told in zip(groups, told_PG, strict=True)
        ]
        told_B = [
            context or rollout
            for group, told in zip(groups, told_PG, strict=True)
            for rollout, context in zip(group.rollouts, told, strict=True)
        ]
        is_told_PG = torch.tensor([[context is not None for context in told] for told in told_PG])
        advantages_PG = advantages_PG * is_told_PG.reshape(advantages_PG.shape)
        return DistillationUpdate(
            self, self.mixture, self.objective, counted, advantages_PG, self.sampling, self.teacher, told_B
        )
