# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""The mixed policy as a vLLM model. vLLM finds this package through the entry point `vllm.general_plugins`.

Only vLLM's processes import the modules of this package; the rest of lmix refers to them by name.
"""

ARCHITECTURE = "MixedPolicyForCausalLM"
"""The `architectures` entry of folders that `lmix export` writes."""
WORKER = "lmix.vllm.worker.MixedPolicyWorker"


def register() -> None:
    """Register the model and its settings with vLLM. vLLM calls this in each process, perhaps several times."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    import lmix.vllm.loader  # noqa: F401  # registers the weight loader
    from lmix.vllm.settings import MixedPolicySettings

    MODELS_CONFIG_MAP[ARCHITECTURE] = MixedPolicySettings
    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, "lmix.vllm.model:ServedMixedPolicy")
