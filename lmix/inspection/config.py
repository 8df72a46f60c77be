"""Settings that select a mixed policy."""

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
    """A mixed policy: a backbone with adapters and a mixture, or a folder written by `lmix export`."""

    folder: str | None = None
    """Folder written by `lmix export`. All fields below except `alpha` are then read from it."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """The frozen model."""
    adapters: AdapterConfig = field(default_factory=AdapterConfig)
    """The streams: policy is the trained adapter (a folder checkpoints/step=N), reference the SFT adapter or model."""
    alpha: float | None = None
    """Weight of the reference, in [0, 1]; null uses 0.5, or the exported folder's value."""
    mixture: MixtureKind = "logits"
    """What is averaged, logits or probabilities."""
    weights: list[float] | None = None
    """Weights of the policy, the reference and each of adapters.experts, instead of alpha, for an ensemble."""
    plausibility: float = 0.0
    """Exclude tokens whose probability under the policy is below this fraction of the most probable token's (as in
    contrastive decoding, which uses 0.1). For evaluation and generation only: in training the ratio would be wrong."""

    def __post_init__(self) -> None:
        self.chosen_mixture()
        if self.folder is not None and not Path(self.folder).is_dir():
            raise ValueError(
                f"folder {self.folder!r} does not exist: give one that lmix export wrote, or backbone and adapters"
            )

    def chosen_mixture(self) -> Mixture:
        """The mixture that the fields describe. Raises ValueError if they do not match each other."""
        alpha = 0.5 if self.alpha is None else self.alpha
        mixed = mixture_of(alpha, self.mixture, self.weights, self.adapters.streams)
        return replace(mixed, plausibility=self.plausibility)

    def load(self) -> MixedPolicyForCausalLM:
        """Load the model. Raises ValueError if it can't be loaded."""
        if self.folder is not None:
            model = MixedPolicyForCausalLM.from_pretrained(self.folder)
            if self.alpha is not None:
                model.mixture = Mixture.at(self.alpha, model.mixture.kind)
            return model
        tokenizer = load_tokenizer(self.backbone.path)  # first, so that a wrong path is found before weights are read
        policy = MixedPolicy.from_pretrained(self.backbone, self.adapters, best_device())
        model = MixedPolicyForCausalLM.from_policy(policy, self.chosen_mixture(), self.backbone)
        return model.ending_with(tokenizer)
