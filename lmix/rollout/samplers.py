"""Which sampler draws completions: `--model.sampler`, and `--sampler` of the evaluation commands."""

import tempfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from lmix.model.adapters import AdapterConfig
from lmix.model.backbone import BackboneConfig, dtype_name
from lmix.model.causal_lm import MixedPolicyForCausalLM
from lmix.model.mixed_policy import MixedPolicy
from lmix.model.mixture import Mixture
from lmix.model.placement import model_paths
from lmix.model.servable import check_servable
from lmix.model.sources import load_config
from lmix.model.tokenizer import load_tokenizer
from lmix.rollout.engine import Engine
from lmix.rollout.sampler import Sampler
from lmix.rollout.vllm_local import LocalVLLM, check_installed
from lmix.rollout.vllm_sampler import VLLMSampler
from lmix.rollout.vllm_servers import ServedVLLM

LEAST_BATCH = 8192
"""Least value of vLLM's `max_num_batched_tokens`."""


class SamplerChoice(ABC):
    """Settings of a sampler, which `make` creates once there is a policy."""

    keeps_frozen = False
    """Whether the sampler can keep the frozen streams' hidden states; otherwise the update computes them."""

    def check(self, backbone: BackboneConfig, adapters: AdapterConfig) -> None:  # noqa: B027  # most need none
        """Raise a one-line ValueError if the sampler can't draw from such a policy. Nothing is loaded at that point."""

    @abstractmethod
    def make(
        self,
        policy: MixedPolicy,
        backbone: BackboneConfig,
        mixture: Mixture,
        slots: int,
        places: int,
        compiled: bool = False,
    ) -> Sampler:
        """Create the sampler.

        Args:
            policy: the policy to draw from.
            backbone: the settings that its model was loaded with.
            mixture: the mixture to draw from at first.
            slots: rows that are decoded at once.
            places: maximum tokens of a prompt with its completion.
            compiled: use `torch.compile`; lmix's engine only.
        """

    def settings(self) -> dict[str, Any]:
        """The name of the class and its fields, for JSON."""
        return {"class": type(self).__name__, **vars(self)}


class LmixEngine(SamplerChoice):
    """lmix's own engine, which samples from the weights that are trained."""

    keeps_frozen = True

    def make(
        self,
        policy: MixedPolicy,
        backbone: BackboneConfig,
        mixture: Mixture,
        slots: int,
        places: int,
        compiled: bool = False,
    ) -> Sampler:
        return Engine(policy, slots, compiled=compiled)


class VLLM(SamplerChoice):
    """vLLM on the trainer's device, one instance for each rank (docs/serve.md).

    Its kernels differ from the trainer's: watch train/sampler_gap_k3, and see objective.sampler_weight_cap. All streams
    must be adapters of one backbone. alpha 0 or 1 is not cheaper than any other alpha.

    Args:
        memory: fraction of the device's memory that vLLM takes, for weights, keys and values.
        sleep: free that memory while the policy is updated; GPUs only.
        options: further arguments of vllm.LLM, such as {enforce_eager: true}.
    """

    def __init__(self, memory: float = 0.4, sleep: bool = True, options: dict[str, Any] | None = None) -> None:
        if not 0 < memory < 1:
            raise ValueError(f"sampler.memory must lie between 0 and 1, not {memory}: a fraction of device memory")
        self.memory, self.sleep, self.options = memory, sleep, options or {}

    def check(self, backbone: BackboneConfig, adapters: AdapterConfig) -> None:
        check_installed()
        check_streams(backbone, adapters)

    def make(
        self,
        policy: MixedPolicy,
        backbone: BackboneConfig,
        mixture: Mixture,
        slots: int,
        places: int,
        compiled: bool = False,
    ) -> Sampler:
        on_gpu = policy.device.type == "cuda"
        settings: dict[str, Any] = {
            "dtype": dtype_name(backbone.dtype, policy.device),
            "gpu_memory_utilization": self.memory,
            "max_model_len": places,
            "max_num_seqs": slots,
            "max_num_batched_tokens": max(LEAST_BATCH, places),
            "disable_log_stats": True,
            # on a CPU vLLM 0.32 can't sample with a seed after a partial prefill
            **({} if on_gpu else {"enable_chunked_prefill": False}),
            **self.options,
        }
        with tempfile.TemporaryDirectory(prefix="lmix-") as folder:
            MixedPolicyForCausalLM.from_policy(policy, mixture, backbone).save_pretrained(folder)
            load_tokenizer(backbone.path).save_pretrained(folder)
            local = LocalVLLM(Path(folder), settings, policy.device, self.sleep and on_gpu)
        local.set_mixture(mixture)  # the folder does not store the temperature
        return VLLMSampler(local, mixture)


class VLLMServers(SamplerChoice):
    """Remote vLLM servers, shared by all ranks. Prompts are divided among them (docs/serve.md).

    Each server serves a folder that `lmix export` wrote with the run's adapters, with VLLM_SERVER_DEV_MODE=1. After
    each step, the servers read the policy's new adapter from a shared folder.

    Args:
        urls: URLs of the servers, such as [http://node1:8000].
        folder: where adapters are written; trainer and servers must see it under the same path.
        timeout: seconds to wait for an answer; after that the server counts as lost.
        retries: how often a lost server is tried again, with the run's weights; 0 ends the run.
        retry_seconds: seconds between two tries.
    """

    def __init__(
        self,
        urls: list[str],
        folder: str,
        timeout: float = 600.0,
        retries: int = 0,
        retry_seconds: float = 10.0,
    ) -> None:
        if not urls:
            raise ValueError("sampler.urls must name at least one server, such as http://node1:8000")
        if timeout <= 0 or retries < 0 or retry_seconds < 0:
            raise ValueError("sampler.timeout must be positive, sampler.retries and sampler.retry_seconds at least 0")
        self.urls, self.folder, self.timeout = urls, folder, timeout
        self.retries, self.retry_seconds = retries, retry_seconds

    def check(self, backbone: BackboneConfig, adapters: AdapterConfig) -> None:
        check_streams(backbone, adapters)

    def make(
        self,
        policy: MixedPolicy,
        backbone: BackboneConfig,
        mixture: Mixture,
        slots: int,
        places: int,
        compiled: bool = False,
    ) -> Sampler:
        servers = ServedVLLM(self.urls, self.timeout, self.retries, self.retry_seconds, slots)
        servers.check(len(policy.stream_names), largest_rank(policy))
        servers.set_mixture(mixture)
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        return VLLMSampler(servers, mixture, Path(self.folder))


def check_streams(backbone: BackboneConfig, adapters: AdapterConfig) -> None:
    """Raise ValueError if vLLM can't run the streams."""
    paths = model_paths(backbone, adapters)
    if others := [path for path in paths if path != backbone.path]:
        raise ValueError(
            f"vLLM supports only adapters on backbone.path {backbone.path!r}, but {others[0]!r} is a whole model: turn "
            "it into an adapter with lmix delta, or use lmix's own engine (sampler=null)"
        )
    check_servable(backbone.path, load_config(backbone.path))


def largest_rank(policy: MixedPolicy) -> int:
    """The largest rank of the streams' adapters."""
    weights = [w for name, w in policy.adapter_state().items() if ".lora_A." in name]
    return max((weight.shape[0] for weight in weights), default=0)
