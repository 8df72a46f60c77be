# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""vLLM's settings for a mixed policy, so that `vllm serve FOLDER` needs no flag, and checks of unsupported settings."""

import os
from typing import Any

from vllm.model_executor.models.config import VerifyAndUpdateConfig

import lmix.vllm
from lmix.model.mixed_config import MixedPolicyConfig
from lmix.model.mixture import Mixture, stream_names
from lmix.model.servable import check_servable
from lmix.model.sources import load_config
from lmix.vllm.loader import LOAD_FORMAT
from lmix.vllm.requests import RequestMixtures


class MixedPolicySettings(VerifyAndUpdateConfig):
    """Hooks that vLLM calls with its settings, before anything is loaded."""

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        config: MixedPolicyConfig = model_config.hf_config
        if not isinstance(config, MixedPolicyConfig) or "path" not in config.backbone:
            raise ValueError(f"folder {model_config.model!r} is not a mixed policy: give one that lmix export wrote")
        check_servable(config.backbone["path"], load_config(config.backbone["path"]))
        # report log-probabilities of the distribution that tokens are drawn from
        model_config.logprobs_mode = "processed_logprobs"
        model_config.logits_processors = [*(model_config.logits_processors or ()), RequestMixtures.NAME]

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        parallel = vllm_config.parallel_config
        if parallel.pipeline_parallel_size > 1:
            raise ValueError("a mixed policy does not support pipeline parallelism: use --tensor-parallel-size instead")
        if vllm_config.speculative_config is not None:
            raise ValueError("a mixed policy does not support speculative decoding: remove --speculative-config")
        if vllm_config.lora_config is not None:
            raise ValueError("a mixed policy has its adapters in its own folder: remove --enable-lora")
        if (quantization := vllm_config.model_config.quantization) is not None:
            raise ValueError(
                f"a mixed policy is served unquantised: remove --quantization {quantization}; "
                "backbone.quantization=nf4 of the export rounds the weights to NF4"
            )
        parallel.worker_extension_cls = parallel.worker_extension_cls or lmix.vllm.WORKER
        if vllm_config.load_config.load_format == "auto":
            vllm_config.load_config.load_format = LOAD_FORMAT
        # weights per request need the logits processors of vLLM's first model runner
        os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
        RequestMixtures.default = exported_mixture(vllm_config.model_config.hf_config)


def exported_mixture(config: MixedPolicyConfig) -> Mixture:
    """The mixture that a folder was exported with."""
    weights = tuple(config.weights[name] for name in stream_names(len(config.adapters)))
    return Mixture(weights, config.mixture, plausibility=config.plausibility)  # pyright: ignore[reportArgumentType]
