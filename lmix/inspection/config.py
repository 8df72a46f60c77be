"""Which mixed policy is looked at."""

from dataclasses import dataclass, field
from pathlib import Path

from lmix.model.adapters import AdapterConfig
from lmix.model.backbone import BackboneConfig, best_device
from lmix.model.causal_lm import MixedPolicyForCausalLM
from lmix.model.mixed_policy import MixedPolicy, Mixture, check_alpha, check_weights
from lmix.model.tokenizer import load_tokenizer


@dataclass(frozen=True)
class MixedPolicyChoice:
    """A backbone, its adapters and what is mixed; or a folder that `lmix export` wrote."""

    folder: str | None = None
    """Folder that `lmix export` wrote; then the fields below but `alpha` are read from there."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """The frozen model."""
    adapters: AdapterConfig = field(default_factory=AdapterConfig)
    """The two streams: policy is what was trained (a folder checkpoints/step=N), reference the SFT adapter."""
    alpha: float | None = None
    """Weight of the reference, in [0, 1]; null is 0.5, or the exported folder's."""
    mixture: Mixture = "logits"
    """What is averaged."""
    weights: list[float] | None = None
    """Of the policy, the reference and each of adapters.experts, in place of alpha: an ensemble."""

    def __post_init__(self) -> None:
        if self.alpha is not None:
            check_alpha(self.alpha)
        check_weights(self.weights, self.adapters, self.mixture)
        if self.folder is not None and not Path(self.folder).is_dir():
            raise ValueError(
                f"folder {self.folder!r} does not exist: give one that lmix export wrote, or backbone and adapters"
            )

    def load(self) -> MixedPolicyForCausalLM:
        """The model. Raises ValueError where it can't be loaded."""
        if self.folder is not None:
            model = MixedPolicyForCausalLM.from_pretrained(self.folder)
            if self.alpha is not None:
                model.policy.alpha = self.alpha
            return model
        tokenizer = load_tokenizer(self.backbone.path)  # a mistake in the path is found before weights are read
        alpha = 0.5 if self.alpha is None else self.alpha
        policy = MixedPolicy.from_pretrained(
            self.backbone, self.adapters, alpha, self.mixture, self.weights, device=best_device()
        )
        return MixedPolicyForCausalLM.from_policy(policy, self.backbone).ending_with(tokenizer)
