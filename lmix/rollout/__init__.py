"""Sampling from the mixed policy."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmix.rollout.samplers import VLLM as VLLM
    from lmix.rollout.samplers import LmixEngine as LmixEngine
    from lmix.rollout.samplers import VLLMServers as VLLMServers

_CHOICES = ("LmixEngine", "VLLM", "VLLMServers")


def __getattr__(name: str) -> Any:
    """The choices of `--model.sampler`, imported on first use."""
    if name in _CHOICES:
        return getattr(import_module("lmix.rollout.samplers"), name)
    raise AttributeError(f"module 'lmix.rollout' has no attribute {name!r}")
