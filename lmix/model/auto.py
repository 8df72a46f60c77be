"""Register mixed policies with transformers' Auto classes, without importing peft or bitsandbytes yet."""

from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedModel

from lmix.model.mixed_config import MixedPolicyConfig


class MixedPolicyLoader:
    """Stands in for `MixedPolicyForCausalLM` until `lmix.model.causal_lm` is imported."""

    config_class = MixedPolicyConfig

    @classmethod
    def from_pretrained(cls, folder: str | Path, *args: Any, **kwargs: Any) -> PreTrainedModel:
        """See `MixedPolicyForCausalLM.from_pretrained`."""
        from lmix.model.causal_lm import MixedPolicyForCausalLM

        return MixedPolicyForCausalLM.from_pretrained(folder, *args, **kwargs)


AutoModelForCausalLM.register(MixedPolicyConfig, MixedPolicyLoader)  # pyright: ignore[reportArgumentType]
