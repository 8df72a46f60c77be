# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""A mixed policy as one model of vLLM. Found by vLLM through the entry point `vllm.general_plugins`.

Only vLLM's own processes import the modules of this package; the rest of lmix talks to them by names.
"""

ARCHITECTURE = "MixedPolicyForCausalLM"
"""What the folders of `lmix export` have in `architectures`."""
WORKER = "lmix.vllm.worker.MixedPolicyWorker"


def register() -> None:
    """Make vLLM know folders that `lmix export` wrote. Called in each of its processes, perhaps several times."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    import lmix.vllm.loader  # noqa: F401  # registers the weight loader
    from lmix.vllm.settings import MixedPolicySettings

    MODELS_CONFIG_MAP[ARCHITECTURE] = MixedPolicySettings
    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, "lmix.vllm.model:ServedMixedPolicy")
