"""lmix: reinforcement learning with logit averaging (Gan & Zhu, arXiv 2605.20555) in PyTorch Lightning."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lmix.registration import register_with_transformers

if TYPE_CHECKING:
    from lmix.data.module import RLDataModule as RLDataModule
    from lmix.model.causal_lm import MixedPolicyForCausalLM as MixedPolicyForCausalLM
    from lmix.model.mixed_policy import MixedPolicy as MixedPolicy
    from lmix.training.distill import DistillModule as DistillModule
    from lmix.training.grpo import GRPOModule as GRPOModule
    from lmix.training.sdpo import SDPOModule as SDPOModule
    from lmix.training.sft import SFTModule as SFTModule

__version__ = "0.2.0.dev0"

# imported on first use, so that the verifier's workers and `--help` need not wait for torch
_HOMES = {
    "DistillModule": "lmix.training.distill",
    "GRPOModule": "lmix.training.grpo",
    "MixedPolicy": "lmix.model.mixed_policy",
    "MixedPolicyForCausalLM": "lmix.model.causal_lm",
    "RLDataModule": "lmix.data.module",
    "SDPOModule": "lmix.training.sdpo",
    "SFTModule": "lmix.training.sft",
}
__all__ = [
    "DistillModule",
    "GRPOModule",
    "MixedPolicy",
    "MixedPolicyForCausalLM",
    "RLDataModule",
    "SDPOModule",
    "SFTModule",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'lmix' has no attribute {name!r}")


register_with_transformers()
