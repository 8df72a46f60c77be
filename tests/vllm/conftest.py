"""vLLM in this process, on the CPU; exported folders of tiny models."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from lmix.model.causal_lm import MixedPolicyForCausalLM
from lmix.model.mixture import Mixture
from lmix.rollout.vllm_local import LocalVLLM
from tests.vllm.models import backbone_folder, exported, mixed_model

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
EAGER = {
    "dtype": "float32",
    "max_model_len": 400,
    "max_num_seqs": 32,
    "max_num_batched_tokens": 2048,
    "enforce_eager": True,
    "gpu_memory_utilization": 0.1,
    "enable_chunked_prefill": False,
    "seed": 0,
}
Start = Callable[..., tuple[MixedPolicyForCausalLM, LocalVLLM]]


@pytest.fixture(autouse=True)
def one_after_the_other(monkeypatch) -> Iterator[None]:
    """Free what a test's vLLM holds before the next one starts in this process."""
    running: list[LocalVLLM] = []
    start = LocalVLLM.__init__

    def noted(self: LocalVLLM, *args, **kwargs) -> None:
        start(self, *args, **kwargs)
        running.append(self)

    monkeypatch.setattr(LocalVLLM, "__init__", noted)
    yield
    for vllm in running:
        from vllm.distributed import cleanup_dist_env_and_memory

        vllm.llm.llm_engine.engine_core.shutdown()
        cleanup_dist_env_and_memory()


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("vllm")


@pytest.fixture
def start(models, tmp_path) -> Start:
    """Start vLLM on an exported mixed policy of an architecture."""

    def started(
        architecture: str, mixture: Mixture = Mixture.at(0.3), options: dict | None = None, **arguments
    ) -> tuple[MixedPolicyForCausalLM, LocalVLLM]:
        model = mixed_model(backbone_folder(architecture, models / architecture), mixture, **arguments)
        folder = exported(model, tmp_path / "export")
        return model, LocalVLLM(folder, EAGER | (options or {}), torch.device("cpu"))

    return started
