"""Configuration of an exported mixed policy. Does not import peft: each of vLLM's processes imports this module."""

from typing import Any

from transformers import AutoConfig, PretrainedConfig

from lmix.model.mixture import MixtureKind
from lmix.model.sources import MIXED

FILE = "config.json"
OWN = ("model_type", "architectures", "auto_map", "quantization_config", "transformers_version", "_name_or_path")
"""Fields of a backbone's configuration that are not copied to that of the mixed policy."""


class MixedPolicyConfig(PretrainedConfig):
    """The backbone's configuration, with the adapters and the mixture."""

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
        """Create a configuration.

        Args:
            backbone: fields of `BackboneConfig`.
            adapters: stream -> its peft folder inside the exported folder, or None for the backbone itself.
            mixture: what is averaged, logits or probabilities.
            weights: stream -> its weight.
            plausibility: see `Mixture`.
            kwargs: fields of the backbone's configuration.
        """
        self.backbone, self.adapters = backbone or {}, adapters or {}
        self.mixture, self.weights, self.plausibility = mixture, weights or {}, plausibility
        super().__init__(**kwargs)


AutoConfig.register(MixedPolicyConfig.model_type, MixedPolicyConfig)
