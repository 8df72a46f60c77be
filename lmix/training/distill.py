"""On-policy distillation of a mixture into one adapter, so that inference needs a single stream.

GKD (Agarwal et al., arXiv 2306.13649), MiniLLM (Gu et al., arXiv 2306.08543), "On-Policy Distillation" (Thinking
Machines, 2025).
"""

from collections.abc import Sequence
from dataclasses import replace

from jsonargparse.typing import lazy_instance
from torch import Tensor

from lmix.model.adapters import AdapterConfig
from lmix.model.backbone import BackboneConfig
from lmix.model.mixture import POLICY, REFERENCE, Mixture, MixtureKind, mixture_of
from lmix.model.origin import Origin
from lmix.model.placement import check_placed, check_tokens, is_model, place_streams
from lmix.rollout.types import Group
from lmix.training.config import OptimizerConfig, SamplingConfig
from lmix.training.distillation import DistillationUpdate
from lmix.training.objectives import Distillation
from lmix.training.teacher import TeacherModule
from lmix.training.update import Update


class DistillModule(TeacherModule):
    """On-policy distillation: the student samples, and learns the frozen mixture's distribution at each of its tokens.

    The settings `backbone`, `adapters`, `alpha`, `mixture` and `weights` describe the mixture to distil. Give them as
    in its training run, with the trained adapter as `adapters.policy`. The student is a new adapter and is saved as
    `policy`. Only the student is sampled and evaluated. Rewards are logged but are not part of the loss.

    Args:
        backbone: the model that the streams share.
        adapters: the mixture's streams. `rank`, `lora_alpha` and `target_modules` apply to a student that starts at the
            base.
        alpha: weight of the reference in the mixture, in [0, 1].
        mixture: what the mixture averages, logits or probabilities.
        weights: weights of the policy, the reference and each of adapters.experts, instead of alpha.
        student: where the student starts: `policy`, `reference` or `base`, or the path of an adapter, such as one
            written by lmix merge.
        sampling: how completions are sampled. The temperature also applies to the teacher.
        rewards: rewards of completions, for logging only.
        objective: the divergence and how it is averaged.
        optimizer: settings of AdamW.

    Raises:
        ValueError: alpha is outside [0, 1], the weights do not match the adapters, or a setting does not apply here.
    """

    def __init__(
        self,
        backbone: BackboneConfig = BackboneConfig(),
        adapters: AdapterConfig = AdapterConfig(),
        alpha: float = 0.5,
        mixture: MixtureKind = "logits",
        weights: list[float] | None = None,
        student: str = POLICY,
        sampling: SamplingConfig = SamplingConfig(),
        rewards: dict[str, float] = {"verifier": 1.0},  # noqa: B006  # never changed
        objective: Distillation = lazy_instance(Distillation),
        optimizer: OptimizerConfig = OptimizerConfig(),
    ) -> None:
        distilled = mixture_of(alpha, mixture, weights, adapters.streams, sampling.temperature)
        starts = {POLICY: adapters.policy, REFERENCE: adapters.reference, "base": None}
        # the student becomes the stream `policy`, and the trained policy an additional frozen stream
        streams = replace(
            adapters,
            policy=starts.get(student, student),
            experts=[adapters.policy or "base", *adapters.experts],
        )
        super().__init__(
            backbone,
            streams,
            weights=[1.0, *[0.0] * (streams.streams - 1)],
            sampling=sampling,
            rewards=rewards,
            objective=objective,
            optimizer=optimizer,
        )
        of_policy, of_reference, *of_experts = distilled.weights
        self.teacher: Mixture = replace(distilled, weights=(0.0, of_reference, of_policy, *of_experts))
        self.distilled_adapters, self.student = adapters, student
        self.distilled = distilled

    def setup(self, stage: str) -> None:
        # checked here so that errors use the stream names of the settings
        check_placed(self.backbone.path, place_streams(self.backbone, self.distilled_adapters), self.root_device)
        if self.student not in (POLICY, REFERENCE, "base") and is_model("student", self.student):
            check_tokens("student", self.student, self.backbone.path)
        super().setup(stage)

    @property
    def origin(self) -> Origin:
        """The mixture that the student was trained towards."""
        streams = self.distilled_adapters.paths()
        divergence = self.objective.divergence
        details = {"mixture": self.distilled.kind, "student": self.student, "divergence": divergence.kind}
        return Origin("distilled", self.model_path, streams, self.distilled.by_name(), details)

    def update(self, groups: Sequence[Group], advantages_PG: Tensor) -> Update:
        return DistillationUpdate(
            self, self.mixture, self.objective, groups, advantages_PG, self.sampling, self.teacher
        )
