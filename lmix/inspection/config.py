"""Which mixed policy is looked at."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from lmix.model.adapters import AdapterConfig
from lmix.model.backbone import BackboneConfig, best_device
from lmix.model.causal_lm import MixedPolicyForCausalLM
from lmix.model.mixed_policy import MixedPolicy
from lmix.model.mixture import Mixture, MixtureKind, mixture_of
from lmix.model.tokenizer import load_tokenizer


@dataclass(frozen=True)
class MixedPolicyChoice:
    """A backbone, its adapters and what is mixed; or a folder that `lmix export` wrote."""

    folder: str | None = None
    """Folder that `lmix export` wrote; then the fields below but `alpha` are read from there."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """The frozen model."""
    adapters: AdapterConfig = field(default_factory=AdapterConfig)
    """The streams: policy is what was trained (a folder checkpoints/step=N), reference the SFT adapter or model."""
    alpha: float | None = None
    """Weight of the reference, in [0, 1]; null is 0.5, or the exported folder's."""
    mixture: MixtureKind = "logits"
    """What is averaged."""
    weights: list[float] | None = None
    """Of the policy, the reference and each of adapters.experts, in place of alpha: an ensemble."""
    plausibility: float = 0.0
    """Leave out tokens whose probability under the policy is less than this part of the most probable one's
    (contrastive decoding; 0.1 there). For evaluation and generation only: in training it would make the ratio wrong."""

    def __post_init__(self) -> None:
        self.chosen_mixture()
        if self.folder is not None and not Path(self.folder).is_dir():
            raise ValueError(
                f"folder {self.folder!r} does not exist: give one that lmix export wrote, or backbone and adapters"
            )

    def chosen_mixture(self) -> Mixture:
        """What the fields say. Raises ValueError where they do not fit together."""
        alpha = 0.5 if self.alpha is None else self.alpha
        mixed = mixture_of(alpha, self.mixture, self.weights, self.adapters.streams)
        return replace(mixed, plausibility=self.plausibility)

    def load(self) -> MixedPolicyForCausalLM:
        """The model. Raises ValueError where it can't be loaded."""
        if self.folder is not None:
            model = MixedPolicyForCausalLM.from_pretrained(self.folder)
            if self.alpha is not None:
                model.mixture = Mixture.at(self.alpha, model.mixture.kind)
            return model
        tokenizer = load_tokenizer(self.backbone.path)  # a mistake in the path is found before weights are read
        policy = MixedPolicy.from_pretrained(self.backbone, self.adapters, best_device())
        model = MixedPolicyForCausalLM.from_policy(policy, self.chosen_mixture(), self.backbone)
        return model.ending_with(tokenizer)
