"""The configuration of a mixed policy in a folder. Without peft: vLLM imports this in each of its processes."""

from typing import Any

from transformers import AutoConfig, PretrainedConfig

from lmix.model.mixture import MixtureKind
from lmix.model.sources import MIXED

FILE = "config.json"
OWN = ("model_type", "architectures", "auto_map", "quantization_config", "transformers_version", "_name_or_path")
"""Fields of a backbone's configuration that say nothing of the mixed policy."""


class MixedPolicyConfig(PretrainedConfig):
    """The backbone's configuration, and what is mixed on it."""

    model_type = MIXED

    def __init__(
        self,
        backbone: dict[str, Any] | None = None,
        adapters: dict[str, str | None] | None = None,
        mixture: MixtureKind = "logits",
        weights: dict[str, float] | None = None,
        plausibility: float = 0.0,
        **kwargs: Any,
    ) -> None:
        """Make it.

        Args:
            backbone: fields of `BackboneConfig`.
            adapters: stream -> its peft folder inside the model's, or None for the backbone itself.
            mixture: what is averaged.
            weights: stream -> its weight.
            plausibility: see `Mixture`.
            kwargs: fields of the backbone's configuration.
        """
        self.backbone, self.adapters = backbone or {}, adapters or {}
        self.mixture, self.weights, self.plausibility = mixture, weights or {}, plausibility
        super().__init__(**kwargs)


AutoConfig.register(MixedPolicyConfig.model_type, MixedPolicyConfig)
